"""SmolLM2-135M-Instruct: a real base, its prompts and its rewards."""
