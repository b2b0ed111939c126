"""What happens if a fact is rewritten? Rank-one edits of an MLP output matrix (paper section 3)."""
