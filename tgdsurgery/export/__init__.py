"""Adapted networks for other programs: ONNX and torch.export archives, checked against PyTorch."""
