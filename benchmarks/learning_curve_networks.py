"""The networks of learning_curve.py: trained as `trimtab train` does, each with its report."""

import json
import time
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trimtab_models import bases, checkpoint, data
from trimtab_models.training.config import TrainConfig
from trimtab_models.training.run import run

SIX = {"layers": 6, "learning_rate": 1e-4, "epochs": 2}
NETWORKS: dict[str, dict[str, Any]] = {
    "td-lambda-six": {"objective": "td-lambda", **SIX, "epochs": 4},
    "gains-six": {"objective": "gains", **SIX},
    "gains-own": {"objective": "gains", "learning_rate": 1e-3, "epochs": 8},
    "td-lambda-whole": {"objective": "td-lambda", "learning_rate": 2e-5, "epochs": 4},
}
"""Name → settings of `trimtab train`: of the base's six lowest layers, of a small network of its
own (see `small`), and of the whole base."""


def small(base: str, folder: Path) -> str:
    """Write a network with the base's vocabulary, two layers and random weights: its directory."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(base)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 128, 384, 2
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 32
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return str(folder)


def fit(name: str, rollouts: Path, size: int, held: Set[tuple[int, ...]], out: Path) -> dict:
    """Train a network on the first answers of a file, and say what it knows.

    The seconds are core-seconds of `trimtab train`, with its report on the held-out answers.
    """
    mine: tuple[list, list] = [], []
    for record in data.read(rollouts):
        labelled = {**record, "reward": record["rewards"]["kindness"]}
        mine[tuple(record["prompt_token_ids"]) in held].append(labelled)
    files = out.with_suffix(".jsonl"), out.with_suffix(".held-out.jsonl")
    data.write(files[0], mine[0][:size])
    data.write(files[1], mine[1])
    settings = {"base": "smollm2", "data": str(files[0]), "validation": str(files[1]), "out": out}
    if name.endswith("-own"):
        settings["scorer"] = small(bases.base_path("smollm2"), out.with_suffix(".initial"))
    start = time.process_time()
    run(TrainConfig.model_validate(NETWORKS[name] | settings))
    return {"seconds": time.process_time() - start, **facts(out)}


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
