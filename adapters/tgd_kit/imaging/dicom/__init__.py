"""DICOM series: found, checked, read, and derived from one another."""
