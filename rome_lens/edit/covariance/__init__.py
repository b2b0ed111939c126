"""C, the second moment of the keys: collecting, keeping and judging it."""
