"""How good denoised images are: in themselves, and for the task."""
