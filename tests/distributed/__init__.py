"""TGD networks on several machines: each test starts two processes with torchrun and looks at what they wrote."""
