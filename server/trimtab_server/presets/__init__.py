"""Presets: a named guidance, served as a model of its own."""
