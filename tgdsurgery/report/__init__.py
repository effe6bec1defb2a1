"""What people look at: one HTML page on a network, and figures for papers."""
