"""Files: checkpoints, deltas and plans."""
