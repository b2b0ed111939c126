"""Many facts over time."""
