"""The embedded demo: a small world of reviews, its base language model and three scorers.

Importing it loads no network and no torch; the weights are beside it and part of the wheel.
"""

from pathlib import Path

from trimtab_models.demo.oracles import REWARD_MAX, rewards
from trimtab_models.demo.world import prompts

__all__ = ["REWARD_MAX", "base", "chat", "prompts", "rewards", "scorers"]

_WEIGHTS = Path(__file__).parent / "weights"


def base() -> Path:
    """Directory of the demo's base language model."""
    return _WEIGHTS / "base"


def scorers() -> dict[str, Path]:
    """Directories of the demo's scorers, by name."""
    return {name: _WEIGHTS / name for name in rewards}


def chat(prompt: str) -> str:
    """A user message as rendered by the base's chat template."""
    return f"<|user|>{prompt}<|end|><|assistant|>"
