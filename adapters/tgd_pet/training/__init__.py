"""Train a denoiser, adapt it with TGD or in other ways, and learn from one patient."""
