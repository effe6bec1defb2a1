"""Damaged files of every format that is read: accepted or refused with a typed error, in 20 s and 2 GB."""
