"""MEND, a hypernetwork that turns a fine-tuning gradient into an edit (Mitchell et al. 2022, arXiv 2110.11309)."""
