"""The part of constraints.py on *tiny*: the guide beside the exact constrained optimum."""

import math
from typing import Any

import numpy as np
import torch
from scipy import stats

from trimtab.params import GuidanceParams
from trimtab_lab.arena.constrained import (
    ExactReturns,
    by_prompt,
    constrained,
    divergence,
    guided,
)
from trimtab_lab.worlds.tiny import PROMPTS, Tiny

KEYS = ("kl", "kl_best", "kl_same", "value_lost")


def mean_se(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {stats.sem(values):.3f}"


def returns_of(tiny: Tiny) -> dict[str, torch.Tensor]:
    """Three returns of the completions: the world's, the number of 2s, and the length."""
    twos = [float(sum(token == 2 for token in y)) for _, y in tiny.finals]
    lengths = [float(len(y)) for _, y in tiny.finals]
    return {
        "reward": tiny.rewards,
        "twos": torch.tensor(twos, dtype=torch.float64),
        "length": torch.tensor(lengths, dtype=torch.float64),
    }


SEEDS = range(5)
CASES: dict[str, dict[str, Any]] = {
    "a floor": {"floors": {"reward": 0.4}},
    "a floor beside a rival": {"floors": {"reward": 0.4}, "scorers": {"twos": 1.0}},
    "a ceiling on what steers": {"ceilings": {"twos": 1.0}, "scorers": {"twos": 1.0}},
    "a floor and a ceiling": {
        "floors": {"reward": 0.3},
        "ceilings": {"length": 2.5},
        "scorers": {"twos": 1.0},
    },
}


def run() -> list[dict[str, Any]]:
    """The guide beside the exact optimum, and the optimum with the guide's own means."""
    lines = []
    for case, fields in CASES.items():
        for beta in (0.0,) if "scorers" not in fields else (1.0, 3.0):
            for seed in SEEDS:
                lines += _tiny(Tiny(seed), case, {**fields, "beta": beta})
    return lines


def _tiny(tiny: Tiny, case: str, fields: dict[str, Any]) -> list[dict[str, Any]]:
    values = returns_of(tiny)
    served = {name: ExactReturns(tiny, own) for name, own in values.items()}
    made = guided(tiny, served, GuidanceParams.parse({"k": 4, "mass": 1.0, **fields}))
    floors, ceilings = fields.get("floors", {}), fields.get("ceilings", {})
    names = [*floors, *ceilings]
    returns = torch.stack([values[name] for name in names])
    low = torch.tensor([floors.get(name, -math.inf) for name in names], dtype=torch.float64)
    high = torch.tensor([ceilings.get(name, math.inf) for name in names], dtype=torch.float64)
    objective = fields["beta"] * sum(
        (w * values[name] for name, w in fields.get("scorers", {}).items()),
        torch.zeros_like(tiny.rewards),
    )
    best, duals = constrained(tiny, objective, returns, low, high)
    width = returns.amax(1) - returns.amin(1)
    lines = []
    for x in range(len(PROMPTS)):
        means = torch.stack([by_prompt(made.p, one)[x] for one in returns])
        short = torch.maximum(low - means, means - high)  # below 0 where there is room
        active = duals[x] != 0
        miss = torch.where(active, short.abs(), short.clamp(min=0)) / width
        value, highest = (
            float(by_prompt(p, objective)[x] - divergence(tiny, p)[x]) for p in (made.p, best)
        )
        # The cheapest policy with the guide's own means of all that is bounded or steers.
        same = torch.stack([values[name] for name in {**dict.fromkeys(names), **_steers(fields)}])
        own = torch.stack([by_prompt(made.p, one)[x] for one in same])
        cheapest, _ = constrained(tiny, 0 * objective, same, own, own)
        lines.append(
            {
                "case": case,
                "beta": fields["beta"],
                "miss": float(miss.max()),
                "active": bool(active.any()),
                "kl": float(divergence(tiny, made.p)[x]),
                "kl_best": float(divergence(tiny, best)[x]),
                "kl_same": float(divergence(tiny, cheapest)[x]),
                "value_lost": highest - value,
            }
        )
    return lines


def _steers(fields: dict[str, Any]) -> dict[str, None]:
    return dict.fromkeys(fields.get("scorers", {}))


def report(lines: list[dict[str, Any]]) -> list[str]:
    out = [
        f"*tiny*, {len(SEEDS)} bases of two prompts, enumerated. *Miss*: distance from the "
        "bound, as a share of the return's range. *KL at the same means*: that of the cheapest "
        "policy with the guide's own means, exactly.",
        "",
        "| case | β | mean miss | largest | KL, nats | the constrained optimum's | at the same "
        "means | value lost |",
        "|---" * 8 + "|",
    ]
    kinds = dict.fromkeys((line["case"], line["beta"]) for line in lines)
    for case, beta in kinds:
        own = [line for line in lines if (line["case"], line["beta"]) == (case, beta)]
        miss = np.array([line["miss"] for line in own])
        cells = [mean_se(np.array([line[key] for line in own])) for key in KEYS]
        out.append(
            f"| {case} | {beta:g} | {100 * miss.mean():.2f} % | {100 * miss.max():.2f} % | "
            + " | ".join(cells)
            + " |"
        )
    return out


KEYS = ("kl", "kl_best", "kl_same", "value_lost")
