"""The search for v* (Eq. 4): keys, contexts, and what the model says for a changed value."""
