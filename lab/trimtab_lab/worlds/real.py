"""everyday and instructions: a real language model, SmolLM2-135M-Instruct, and rewards by code.

The base is fetched, not trained. Real text has no exact optimum: the frontier is estimated from
answers of the base, and is believed only at a small KL.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab_lab.worlds.world import World
from trimtab_models import bases, smollm2
from trimtab_models.smollm2 import instructions, prompts, rewards


def base() -> Path:
    """The directory of the base, fetched if it is missing."""
    return Path(bases.base_path(smollm2.NAME))


TRAINING: Mapping[str, Any] = {"probe": {}}
"""A scorer is a probe of the base's states, by the defaults of `trimtab train`: it trains in
seconds and forwards no token. The base's six lowest layers would train for minutes."""

EVERYDAY = World(
    name="everyday",
    gold="kindness",
    rewards={
        "kindness": rewards.kindness,
        "plainness": rewards.plainness,
        "brevity": rewards.brevity,
    },
    supports=dict.fromkeys(("kindness", "plainness", "brevity"), (-1.0, 1.0)),
    bins=dict.fromkeys(("kindness", "plainness", "brevity"), 25),
    prompts=lambda split, n, seed: list(map(prompts.chat, prompts.prompts(split, n, seed))),
    max_tokens=48,
    base=base,
    real=True,
    training=TRAINING,
)

INSTRUCTIONS = World(
    name="instructions",
    gold="success",
    rewards={"success": instructions.success, "graded": instructions.graded},
    supports=dict.fromkeys(("success", "graded"), (0.0, 1.0)),
    bins={"success": 2, "graded": 25},
    prompts=lambda split, n, seed: list(map(prompts.chat, instructions.prompts(split, n, seed))),
    max_tokens=64,
    base=base,
    real=True,
    training=TRAINING,
)
