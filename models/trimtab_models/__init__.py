"""Trimtab models: scorer networks, their checkpoints and offline training."""
