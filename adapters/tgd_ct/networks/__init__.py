"""The networks of task-oriented denoising: denoisers, critic, segmenters."""
