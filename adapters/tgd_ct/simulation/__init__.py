"""Simulated patients: abdomens with tumours, their scans at several doses, and their files."""
