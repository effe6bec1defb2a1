"""The study of task-oriented denoising: settings, patients, and the jobs that train and measure."""
