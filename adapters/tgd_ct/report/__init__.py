"""What a finished study leaves to read."""
