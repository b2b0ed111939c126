"""What the commands share: options, manifests, tables and figures."""
