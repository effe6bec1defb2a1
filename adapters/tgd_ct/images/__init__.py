"""CT from files, and low dose inserted into it."""
