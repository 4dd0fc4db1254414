"""Adapters: they turn an engine's batch into engine-neutral rows for the guide."""
