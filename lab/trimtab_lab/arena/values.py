"""Does a better fit of values give better answers? Compare each value scorer's error and reward.

    MSE = mean over answers, and prefixes y^{1:t} of each, of (V(x, y^{1:t}) − R(x, y))²

on new answers of the base to the test prompts. It includes the variance of the returns, which is
the same for every scorer, so it orders scorers by their distance to the true value. VAS reports
that a smaller error goes with a higher reward.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from trimtab_lab.arena.board import Board
from trimtab_lab.arena.methods import METHODS
from trimtab_lab.arena.stats import at_kl
from trimtab_lab.worlds import World
from trimtab_models import checkpoint, networks, outputs, pretrained, texts
from trimtab_models.demo import rollouts
from trimtab_models.features import States
from trimtab_models.rows import Rollout
from trimtab_models.scoring import prefix_scores

ANSWERS = 16
REMEDY = "remove it to measure again"
MIN_SCORERS = 4
"""Minimum number of scorers for a meaningful correlation."""


def errors(
    world: World, base: Path, scorers: Mapping[str, Any], prompts: Sequence[str], path: Path
) -> dict[str, float]:
    """MSE of each scorer that is a value of the gold reward, by name; stored in `path`.

    Args:
        world: the world, with its gold reward.
        base: the base model's directory.
        scorers: name → path; scorers described by fields are not values of one reward.
        prompts: test prompts.
        path: a JSON file; scorers in it are not measured again.

    Raises:
        Damaged: (a ValueError) the file is damaged.
    """
    measured = outputs.read(path, dict[str, float], REMEDY) if path.exists() else {}
    used = {method.scorer for method in METHODS.values() if method.target == "gold"}
    valued = {
        name: spec
        for name, spec in scorers.items()
        if name in used and isinstance(spec, str) and checkpoint.read_info(spec).is_value
    }
    missing = {name: spec for name, spec in valued.items() if name not in measured}
    if missing:
        tokenizer = pretrained.tokenizer(base)
        answers = _answers(world, base, tokenizer, prompts)
        for name, spec in missing.items():
            model, info = checkpoint.load(spec)
            states = States(base) if info.family == "probe" else None
            read = None
            if info.reads is not None:
                read = texts.of(model.config, pretrained.tokenizer(spec), tokenizer, info.reads)
            pad = tokenizer.pad_token_id or 0
            scores = prefix_scores(model, info, answers, pad, states=states, texts=read)
            gaps = [((v - a.label) ** 2).mean() for v, a in zip(scores, answers, strict=True)]
            measured[name] = float(torch.stack(gaps).mean())
        outputs.put(path, json.dumps(measured) + "\n")
    return {name: measured[name] for name in valued}


def _answers(world: World, base: Path, tokenizer: Any, prompts: Sequence[str]) -> list[Rollout]:
    model = networks.build("language", base, dtype=torch.float32)
    records = rollouts.sample(
        model, tokenizer, [*prompts] * ANSWERS, seed=1, most_tokens=world.max_tokens
    )
    reward = world.rewards[world.gold]
    return [
        Rollout(
            r["prompt_token_ids"], r["completion_token_ids"], reward(r["prompt"], r["completion"])
        )
        for r in records
    ]


def correlation(board: Board, mse: Mapping[str, float]) -> dict[str, Any] | None:
    """Spearman's ρ of MSE and reward at equal KL over methods with values; None if they are few.

    p is one-sided, for ρ < 0, from a permutation test, which is exact for few methods.
    """
    rows = []
    for name, runs in board.methods.items():
        scorer = METHODS[name].scorer if name in METHODS else None
        if scorer is None or scorer not in mse or METHODS[name].group != "token" or len(runs) < 2:
            continue
        if METHODS[name].temperature != 1 or METHODS[name].top_p < 1 or METHODS[name].over:
            continue  # what decodes beside the value differs
        base = (board.base_reward, np.zeros_like(board.base_reward))
        at = at_kl([base, *((run.reward(board.gold), run.spent) for run in runs)], board.kl)
        if at is not None:
            rows.append({"method": name, "mse": mse[scorer], "reward": float(at.mean())})
    if len(rows) < MIN_SCORERS:
        return None
    x, y = ([row[key] for row in rows] for key in ("mse", "reward"))

    def rho(order: Any) -> float:
        return float(stats.spearmanr(order, y).statistic)

    test = stats.permutation_test(
        (x,), rho, permutation_type="pairings", alternative="less", rng=np.random.default_rng(0)
    )
    return {"methods": rows, "rho": float(test.statistic), "p": float(test.pvalue)}
