"""A widget for notebooks in which a fact is traced, its states restored, edited, and the edits undone."""

from rome_lens.explorer.explorer import Explorer

__all__ = ["Explorer"]
