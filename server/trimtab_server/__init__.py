"""The server: what clients talk to."""
