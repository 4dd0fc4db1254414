"""Scoring: networks behind prefix pools, text, and calls with a time budget."""
