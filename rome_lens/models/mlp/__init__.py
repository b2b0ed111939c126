"""MLPs: the output matrix that edits change, and what an MLP adds to the residual stream."""
