"""Which layer to edit, from traces and edits of facts that the model knows."""
