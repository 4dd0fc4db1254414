"""A world on disk: its base, labelled rollouts of the base, and scorers trained on them.

    DIR/base/    DIR/rollouts.jsonl    DIR/scorers/NAME/

Existing parts are not made again, and a training that was killed resumes.
"""

from pathlib import Path
from typing import Any

import torch

from trimtab_lab.worlds import language_model
from trimtab_lab.worlds.world import World
from trimtab_models import data, networks, pretrained
from trimtab_models.data.fields import rejudged
from trimtab_models.demo.rollouts import sample
from trimtab_models.objectives import OBJECTIVES
from trimtab_models.training.config import TrainConfig
from trimtab_models.training.run import run

DOCUMENTS = 32_000
PAIRS = 8_000
SHARPNESS = 4.0  # of the judge of the pairs, divided by the width of the reward's support


def build_base(world: World, out: Path) -> Path:
    """The directory of a world's base: committed, fetched, or out/base, trained if absent.

    Raises:
        OSError, ValueError: it cannot be fetched.
    """
    if world.documents is None:
        assert world.base is not None
        return world.base() if callable(world.base) else world.base
    base = out / "base"
    if not base.exists():
        language_model.train(world.documents(DOCUMENTS, 0), base)
    return base


def roll_out(
    world: World, base: Path, out: Path, *, prompts: int, completions: int, seed: int = 0
) -> None:
    """Sample completions of training prompts at temperature 1, as JSON Lines.

    A record has "prompt" and "completion" as text and as "…_token_ids", and every exact reward
    under "rewards". Completions of one prompt are not adjacent, so that batches mix prompts.
    """
    if out.exists():
        return
    tokenizer = pretrained.tokenizer(base)
    model = networks.build("language", base, dtype=torch.float32)
    texts = world.prompts("train", prompts, seed) * completions
    records = sample(model, tokenizer, texts, seed, most_tokens=world.max_tokens)
    data.write(out, (record | {"rewards": _rewards(world, record)} for record in records))


def _rewards(world: World, record: data.Record) -> dict[str, float]:
    prompt, completion = record["prompt"], record["completion"]
    return {name: reward(prompt, completion) for name, reward in world.rewards.items()}


def train(
    world: World, folder: Path, name: str, objective: str, reward: str, **settings: Any
) -> Path:
    """Train one scorer of one reward on the world's rollouts.

    Args:
        world: the world.
        folder: the world's directory.
        name: of the new checkpoint, under folder/scorers.
        objective: an objective of `trimtab train`.
        reward: name of the reward that labels the rollouts.
        settings: fields of a TrainConfig; they override those chosen here.

    Returns:
        Its directory.
    """
    out = folder / "scorers" / name
    if out.exists():
        return out
    options: dict[str, Any] = {}
    low, high = world.supports[reward]
    if "distribution" in objective:
        options = {"support": [low, high], "bins": world.bins[reward]}
    if objective == "fudge":
        options = {"threshold": (low + high) / 2}
    fields: dict[str, Any] = {
        "objective": objective,
        "options": options,
        "base": str(build_base(world, folder)),
        "data": str(training_data(world, folder, objective, reward)),
        "validation": 0.06,
        "out": out,
    }
    if "probe" not in settings:  # a probe has defaults of its own
        fields |= {"epochs": 1, "learning_rate": 1e-3}
    return run(TrainConfig(**fields | settings))


def training_data(world: World, folder: Path, objective: str, reward: str) -> Path:
    """The rollouts with "reward" set, or pairs of them, as the objective needs."""
    kind = "rollouts" if objective not in OBJECTIVES else OBJECTIVES[objective]().data
    kind = "pairs" if objective == "dpo" else kind
    path = folder / "data" / f"{reward}-{kind}.jsonl"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    labelled = [
        {**rejudged(record), "reward": record["rewards"][reward]}
        for record in data.read(folder / "rollouts.jsonl")
    ]
    if kind == "pairs":
        low, high = world.supports[reward]
        labelled = data.preferences(labelled, PAIRS, 0, SHARPNESS / (high - low))
    data.write(path, labelled)
    return path
