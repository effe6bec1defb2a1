"""Slow implementations of what the package means: obviously right, and checked by `test_oracles.py`."""
