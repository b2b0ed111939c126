"""An edit as data: its updates and diagnostics; applying, reverting, saving and exporting it."""
