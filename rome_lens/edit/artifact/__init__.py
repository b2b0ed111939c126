"""An edit as data: its updates, how they are applied, saved and exported, and its health."""
