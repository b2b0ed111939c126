"""Runnable modules: one for each figure, table or benchmark (python -m analyses.NAME --help)."""
