"""Commands that load when they run, and the options that they share."""
