"""Runnable modules: one for each figure, table or benchmark (`rome-lens NAME --help`)."""
