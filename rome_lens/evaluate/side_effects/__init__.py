"""Side effects of an edit: what changed besides the edited facts."""
