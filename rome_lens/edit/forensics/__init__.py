"""Edits found in a model without its original: which layer, what was written, and taking it out."""
