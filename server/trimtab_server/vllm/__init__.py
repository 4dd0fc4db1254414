"""The server over vLLM. Only this subpackage of the server imports vLLM."""
