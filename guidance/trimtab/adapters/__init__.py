"""Adapters: an engine’s view comes in, engine-neutral rows go to the guide."""
