"""What the papers claim of their methods, as data, and what is found of it here."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from trimtab.arena.frontier import Floats
from trimtab.arena.runs import Run
from trimtab.arena.stats import at_kl, holm, paired

LEVEL = 0.05


@dataclass(frozen=True)
class Claim:
    """One method is better than another: at the same KL, or each at its own best setting."""

    better: str
    worse: str
    source: str
    compared: Literal["equal KL", "best settings"] = "equal KL"


_TABLE_1 = "PARGS, Table 1"
CLAIMS = (
    *(
        Claim("pargs", worse, _TABLE_1, compared)
        for compared in ("best settings", "equal KL")
        for worse in ("args", "cd-fudge", "rad", "top-k 10")
    ),
    Claim("args", "top-k 10", _TABLE_1, "best settings"),
    Claim("vas", "vas-cut", "VAS, ablation of the tail"),
    Claim("vas", "vas-td0", "VAS, ablation of λ"),
    Claim("vas", "args", "VAS, Table 1"),
    Claim("vas", "fudge", "VAS, Table 1"),
    Claim("cd-fudge", "cd-q", "Controlled Decoding, Fig. 2"),
    Claim("best-of-128", "vas", "VAS: equal to best-of-128", "best settings"),
    Claim("blockwise", "cd-fudge", "Controlled Decoding, Fig. 2", "best settings"),
    Claim("distribution", "vas", "this library"),
    Claim("distribution", "value-mass", "this library: distribution against mean value"),
    Claim("value-mass", "vas-cut", "this library: mass against k"),
    Claim("distribution", "soft-value", "this library: one head for every β"),
    Claim("distribution", "best-of-128", "this library", "best settings"),
)


def test(
    methods: Mapping[str, list[Run]], gold: str, base: Floats, kl: float
) -> list[dict[str, Any]]:
    """Every claim whose methods were run: the paired difference, Holm's p over all of them.

    Args:
        methods: settings of each method.
        gold: the reward that judges.
        base: mean reward of the base, [prompts].
        kl: where methods are compared at equal KL.
    """
    found = []
    for claim in CLAIMS:
        sides = [
            _stand(methods.get(name, []), gold, base, kl if claim.compared == "equal KL" else None)
            for name in (claim.better, claim.worse)
        ]
        if sides[0] is not None and sides[1] is not None:
            found.append({**asdict(claim), **paired(sides[0], sides[1]).as_dict()})
    for row, p in zip(found, holm([row["p"] for row in found]), strict=True):
        verdict = "reproduced" if p < LEVEL else "not significant"
        if row["high"] < 0:
            verdict = "reversed"
        row |= {"p_holm": p, "verdict": verdict}
    return found


def _stand(runs: list[Run], gold: str, base: Floats, kl: float | None) -> Floats | None:
    """What a method stands for: [prompts] rewards at a KL, or at its best setting."""
    if not runs:
        return None
    if kl is None:
        return max((run.reward(gold) for run in runs), key=lambda rewards: float(rewards.mean()))
    if not all(np.isfinite(run.spent).all() for run in runs):
        return None
    return at_kl(
        [(base, np.zeros_like(base)), *((run.reward(gold), run.spent) for run in runs)], kl
    )
