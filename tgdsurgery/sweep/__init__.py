"""The threshold study: what the old task loses without the channels below each phi."""
