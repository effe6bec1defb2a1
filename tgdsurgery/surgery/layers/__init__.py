"""The layers form: the paper's TGD layers in the torch.fx graph."""
