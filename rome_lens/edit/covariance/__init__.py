"""C, the second moment of the keys: collecting it, storing it, and its diagnostics."""
