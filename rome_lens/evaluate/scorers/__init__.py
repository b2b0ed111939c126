"""Scores of a record, one module for each protocol."""
