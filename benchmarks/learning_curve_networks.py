"""The networks of learning_curve.py: trained as `trimtab train` does, each with its report."""

import json
import time
from collections.abc import Set
from pathlib import Path
from typing import Any

from trimtab_models import checkpoint, data
from trimtab_models.training.config import TrainConfig
from trimtab_models.training.run import run

SIX = {"layers": 6, "learning_rate": 1e-4, "epochs": 4}
NETWORKS: dict[str, dict[str, Any]] = {
    "td-lambda-six": {"objective": "td-lambda", **SIX},
    "gains-six": {"objective": "gains", **SIX},
    "gains-whole": {"objective": "gains", "learning_rate": 5e-5, "epochs": 2},
    "td-lambda-whole": {"objective": "td-lambda", "learning_rate": 2e-5, "epochs": 4},
}
"""Name → settings of `trimtab train`: of the base's six lowest layers, and of the whole base."""


def fit(name: str, rollouts: Path, size: int, held: Set[tuple[int, ...]], out: Path) -> dict:
    """Train a network on the first answers of a file, and say what it knows.

    The seconds are those of `trimtab train`, with its report on answers to the held-out prompts.
    """
    mine: tuple[list, list] = [], []
    for record in data.read(rollouts):
        labelled = {**record, "reward": record["rewards"]["kindness"]}
        mine[tuple(record["prompt_token_ids"]) in held].append(labelled)
    files = out.with_suffix(".jsonl"), out.with_suffix(".held-out.jsonl")
    data.write(files[0], mine[0][:size])
    data.write(files[1], mine[1])
    settings = {"base": "smollm2", "data": str(files[0]), "validation": str(files[1]), "out": out}
    start = time.monotonic()
    run(TrainConfig.model_validate(NETWORKS[name] | settings))
    return {"seconds": time.monotonic() - start, **facts(out)}


def facts(out: Path) -> dict:
    """What a network knows, by its report, and the β at which it should spend some nats."""
    report = json.loads((out / "report.json").read_text())
    auc = report["prefix_auc"]["mean"]
    known = {str(one["percent"]): one["beyond_prompt"]["value"] for one in report["known"]}
    return {
        "auc": [auc["mean"], auc["standard_error"]],
        "known": {part: known[part] for part in ("10", "25", "50", "75")},
        "beta": 3 / checkpoint.read_info(out).deviation,
    }
