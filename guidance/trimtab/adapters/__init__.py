"""Adapters: an engine`s view in, engine-neutral rows out."""
