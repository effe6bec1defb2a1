"""ONNX files: their weights, and their graph as a torch module."""
