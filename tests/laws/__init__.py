"""The laws of the package: each on random networks, and on every network of the bug catalogue."""
