"""Where is a fact stored? Causal tracing (paper section 2)."""
