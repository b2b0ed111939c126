"""Numbers for known models, each with its source."""
