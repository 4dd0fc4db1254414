"""Does a better fit of values make better answers? Each value scorer's error, against its reward.

    MSE = mean over answers, and prefixes y^{1:t} of each, of (V(x, y^{1:t}) − R(x, y))²

on fresh answers of the base to the test prompts. The returns' own variance is in it, the same for
every scorer, so its order is that of the distance to the true value (VAS finds that less of
it goes with more reward).
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
from trimtab_models import checkpoint, networks, outputs, pretrained
from trimtab_models.demo import rollouts
from trimtab_models.rows import Rollout
from trimtab_models.scoring import prefix_scores

ANSWERS = 16
CURE = "remove it to measure again"
FEWEST = 4
"""Scorers, for a correlation to say anything."""


def errors(
    world: World, base: Path, scorers: Mapping[str, Any], prompts: Sequence[str], path: Path
) -> dict[str, float]:
    """MSE of each scorer that is a value of the gold reward, by its name; kept in `path`.

    Args:
        world: whose gold reward.
        base: the base model's directory.
        scorers: name → path; those given as fields are no values of one reward.
        prompts: test prompts.
        path: a JSON file; what it holds is not measured again.

    Raises:
        Damaged: (a ValueError) the file is not what was written.
    """
    found = outputs.read(path, dict[str, float], CURE) if path.exists() else {}
    used = {method.scorer for method in METHODS.values() if method.target == "gold"}
    asked = {
        name: spec
        for name, spec in scorers.items()
        if name in used and isinstance(spec, str) and checkpoint.read_info(spec).is_value
    }
    left = {name: spec for name, spec in asked.items() if name not in found}
    if left:
        tokenizer = pretrained.tokenizer(base)
        answers = _answers(world, base, tokenizer, prompts)
        for name, spec in left.items():
            model, info = checkpoint.load(spec)
            scores = prefix_scores(model, info, answers, tokenizer.pad_token_id or 0)
            gaps = [((v - a.label) ** 2).mean() for v, a in zip(scores, answers, strict=True)]
            found[name] = float(torch.stack(gaps).mean())
        outputs.put(path, json.dumps(found) + "\n")
    return {name: found[name] for name in asked}


def _answers(world: World, base: Path, tokenizer: Any, prompts: Sequence[str]) -> list[Rollout]:
    model = networks.build("language", base, dtype=torch.float32)
    drawn = rollouts.sample(
        model, tokenizer, [*prompts] * ANSWERS, seed=1, most_tokens=world.max_tokens
    )
    reward = world.rewards[world.gold]
    return [
        Rollout(
            r["prompt_token_ids"], r["completion_token_ids"], reward(r["prompt"], r["completion"])
        )
        for r in drawn
    ]


def foretold(board: Board, mse: Mapping[str, float]) -> dict[str, Any] | None:
    """Spearman's ρ of MSE and reward at equal KL over methods with values; None with few of them.

    The p is one-sided, that ρ < 0, by permutation: exact for so few.
    """
    rows = []
    for name, runs in board.methods.items():
        scorer = METHODS[name].scorer if name in METHODS else None
        if scorer is None or scorer not in mse or METHODS[name].group != "token" or len(runs) < 2:
            continue
        base = (board.base_reward, np.zeros_like(board.base_reward))
        at = at_kl([base, *((run.reward(board.gold), run.spent) for run in runs)], board.kl)
        if at is not None:
            rows.append({"method": name, "mse": mse[scorer], "reward": float(at.mean())})
    if len(rows) < FEWEST:
        return None
    x, y = ([row[key] for row in rows] for key in ("mse", "reward"))

    def rho(order: Any) -> float:
        return float(stats.spearmanr(order, y).statistic)

    test = stats.permutation_test(
        (x,), rho, permutation_type="pairings", alternative="less", rng=np.random.default_rng(0)
    )
    return {"methods": rows, "rho": float(test.statistic), "p": float(test.pvalue)}
