"""Phantoms' voxel grids and a parallel-beam projector."""
