"""Low-dose CT: simulate and insert dose, denoise with and without the loss of a downstream task (TOD-Net)."""
