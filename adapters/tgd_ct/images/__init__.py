"""CT from files, in HU; label maps; and low dose inserted into images of normal dose."""
