"""Files and names made to do harm: each ends with one line and exit code 2, runs nothing, and leaves nothing behind."""
