"""The methods, one module each, with their numbers."""
