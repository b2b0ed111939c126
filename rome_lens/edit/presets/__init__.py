"""Hyper-parameters of known models, each with its source."""
