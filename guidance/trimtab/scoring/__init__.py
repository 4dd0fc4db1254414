"""How scorers score: networks behind prefix pools, text, and calls within a budget of time."""
