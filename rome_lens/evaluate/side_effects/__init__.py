"""What else an edit changed."""
