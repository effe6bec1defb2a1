"""Volumes and their files: NIfTI and DICOM, read onto one grid and written back to it."""
