"""Floors, ceilings and utilities on the tiny world, exactly: the guide's policy, and the optimum.

The constrained optimum of a prompt maximises E[objective] − KL(π ‖ π0) over all distributions of
its completions that keep each mean return in its bounds. It is

    π*(y) ∝ π0(y)·exp(objective(y) + Σ_i d_i·R_i(y))

with the d of trimtab.duals, computed here by bisection on the completions themselves: no scorer, no
candidates, no steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from trimtab.guide import Guide
from trimtab.params import MAX_BETA, GuidanceParams
from trimtab.rows import Row, Step
from trimtab.scorers.base import Scorer
from trimtab.scoring.pool import Ids
from trimtab.scoring.text import Prompt
from trimtab_lab.worlds.tiny import PROMPTS, Tiny, TinyState, ended
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.readout import soft_value

SMALLEST = 1e-30
"""Probability of a return that cannot follow a prefix; its logarithm must be finite."""
SWEEPS, HALVINGS = 200, 60
STEADY = 1e-10


class ExactReturns(Scorer):
    """The exact distribution of any return of the world's completions."""

    family = "distribution"
    distributional = True

    def __init__(self, tiny: Tiny, rewards: Tensor) -> None:
        """rewards: of each completion, [finals]."""
        super().__init__(ScorerInfo(objective="exact returns"))
        values, place = rewards.unique(return_inverse=True)
        self.returns = values.float()
        empty = torch.zeros(len(values), dtype=torch.float64)
        tables = {state: empty.clone() for state in tiny.states}
        for (x, y), b, p in zip(tiny.finals, place.tolist(), tiny.probabilities, strict=True):
            for t in range(len(y) + 1):
                tables[x, y[:t]][b] += p
        self.logits = {
            (*x, *y): (p / p.sum()).clamp(min=SMALLEST).log().float()
            for (x, y), p in tables.items()
        }

    def histograms(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """See DistributionScorer.histograms."""
        rows = zip(prefixes, candidates, strict=True)
        return torch.stack([self.logits[(*p.tolist(), int(v))] for p, own in rows for v in own])

    def score(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        strengths: Sequence[float],
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """See Scorer.score."""
        sizes = torch.tensor([len(group) for group in candidates])
        c = torch.tensor(strengths).repeat_interleave(sizes)
        return soft_value(self.histograms(keys, prefixes, candidates), self.returns, c)


@dataclass
class Guided:
    """What the guide does at every prefix, each with the history that leads to it."""

    p: Tensor  # [finals], π(y | x)
    kl: Tensor  # [finals], Σ of its steps' KL
    rows: dict[TinyState, Row] = field(default_factory=dict)  # after their step


def guided(tiny: Tiny, served: Mapping[str, Scorer], params: GuidanceParams) -> Guided:
    """Every prefix through the real guide, from the shortest to the longest."""
    guide, params = Guide(served), params.resolve(served)
    logits = dict(zip(tiny.states, tiny.at(tiny.log_pi0).float(), strict=True))
    rows: dict[TinyState, Row] = {}
    policy: dict[TinyState, Tensor] = {}
    for depth in range(max(len(y) for _, y in tiny.finals)):
        states = [s for s in tiny.states if len(s[1]) == depth and not ended(s[1])]
        for x, y in states:
            steps: dict[int, Step] = dict(rows[x, y[:-1]].steps) if y else {}
            rows[x, y] = Row(params, len(x), prefix=np.array([*x, *y]), steps=steps)
            rows[x, y].record_key = "kept"
        fused = torch.stack([logits[state] for state in states])
        guide.step(fused, [(i, rows[state]) for i, state in enumerate(states)])
        policy |= zip(states, fused.double().log_softmax(-1), strict=True)
    p, kl = [], []
    for x, y in tiny.finals:
        p.append(torch.stack([policy[x, y[:t]][v] for t, v in enumerate(y)]).sum().exp())
        kl.append(sum(step.kl for step in rows[x, y[:-1]].steps.values()))
    return Guided(torch.stack(p), torch.tensor(kl, dtype=torch.float64), rows)


def by_prompt(p: Tensor, values: Tensor) -> Tensor:
    """Means over the completions of each prompt, [prompts]."""
    return (p * values).view(len(PROMPTS), -1).sum(1)


def divergence(tiny: Tiny, p: Tensor) -> Tensor:
    """KL(π ‖ π0) of each prompt, [prompts]."""
    ratio = torch.where(p > 0, p.log() - tiny.probabilities.log(), 0.0)
    return by_prompt(p, ratio)


def constrained(
    tiny: Tiny, objective: Tensor, returns: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """The constrained optimum.

    Args:
        tiny: the world.
        objective: β·Σ w_i·u_i of each completion, [finals].
        returns: the bounded returns, [scorers, finals].
        low: their floors, [scorers], −inf where there is none.
        high: their ceilings, [scorers], inf where there is none.

    Returns:
        π*, [finals], and the strengths d, [prompts, scorers], at most MAX_BETA in size.
    """
    base = (tiny.probabilities.log() + objective).view(len(PROMPTS), -1)
    own = returns.view(len(returns), len(PROMPTS), -1)
    duals = torch.zeros(len(PROMPTS), len(returns), dtype=torch.float64)
    for x in range(len(PROMPTS)):
        for _ in range(SWEEPS):
            before = duals[x].clone()
            for i in range(len(returns)):
                least = -MAX_BETA if high[i] < torch.inf else 0.0
                most = MAX_BETA if low[i] > -torch.inf else 0.0
                for _ in range(HALVINGS):
                    middle = (least + most) / 2
                    duals[x, i] = middle
                    p = (base[x] + duals[x] @ own[:, x]).softmax(-1)
                    bound = low[i] if middle > 0 else high[i]
                    if float(p @ own[i, x]) < bound:
                        least = middle
                    else:
                        most = middle
            if float((duals[x] - before).abs().max()) < STEADY:
                break
    p = (base + torch.einsum("xi,ixn->xn", duals, own)).softmax(-1)
    return p.flatten(), duals
