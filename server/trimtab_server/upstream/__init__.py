"""A black-box base: a model behind an OpenAI-compatible endpoint, steered token by token."""
