"""HTTP routes of ours, over any engine."""
