"""Running a model: all of it, some blocks, with keys and values kept, over a tree of prefixes, or to write text."""
