"""Files: checkpoints and deltas."""
