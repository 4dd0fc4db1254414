"""The embedded demo: a small world of reviews, its base LM and three scorers."""
