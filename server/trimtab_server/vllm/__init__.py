"""The server over vLLM: everything of this package that imports vLLM is here."""
