"""PET denoising with Targeted Gradient Descent: simulated scans, a 2.5-D DnCNN, fine-tuning, evaluation."""
