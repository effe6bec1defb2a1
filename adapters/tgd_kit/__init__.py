"""What an adapter needs whatever its images are: runs, training, image files, simulation, reports, commands."""
