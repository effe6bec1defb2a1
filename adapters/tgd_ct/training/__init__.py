"""Training: segmenters on normal dose, denoisers with and without the task loss, and their adaptation."""
