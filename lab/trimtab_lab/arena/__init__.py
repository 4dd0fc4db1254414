"""The arena: decoding methods on worlds with exact rewards, against the exact optimum."""
