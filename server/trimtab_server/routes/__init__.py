"""Our HTTP routes, over any engine."""
