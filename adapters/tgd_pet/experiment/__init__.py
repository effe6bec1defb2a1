"""The TGD paper's study on simulated scans: its settings, patients, networks and jobs."""
