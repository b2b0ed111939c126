"""The editing methods, one module each, with the method's config."""
