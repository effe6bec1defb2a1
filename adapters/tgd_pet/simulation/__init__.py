"""Simulated patients: anatomy, scan, reconstruction, and their files."""
