"""lm-evaluation-harness on models of TransformerLens."""
