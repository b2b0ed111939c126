"""How a model is loaded: read, converted, and compared with Hugging Face's own."""
