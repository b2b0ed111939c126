"""The search for k* (Eq. 3) and v* (Eq. 4), and the contexts that both are averaged over."""
