"""What guards training: optimizers that cannot move frozen entries, and the proof afterwards."""
