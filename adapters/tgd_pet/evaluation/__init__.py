"""How good a denoiser is: lesions, noise, error, artefacts."""
