"""Token-level decoders on the tiny world, exactly: the real guide at every possible prefix.

A decoder gives a distribution of the next token after every prefix, and so one of completions:

    π(y | x) = Π_t π(y_t | x, y^{1:t−1})

Its reward and its KL to the base are therefore sums over completions, without sampling noise, and
can be compared with the exact optimum π*(y | x) = π0(y | x)·exp(β·R) / Z(x).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers.base import Scorer
from trimtab.scoring.pool import Ids
from trimtab.scoring.text import Prompt
from trimtab_lab.worlds.tiny import PROMPTS, Prefix, Tiny, TinyState, ended
from trimtab_models.checkpoint import ScorerInfo

BISECTIONS = 60  # 1e4·2^−60 < 1e−14
ScoreFunction = Callable[[Prefix, Prefix, float], float]
"""(prompt, prefix of a completion, strength) → score."""


class TableScorer(Scorer):
    """A scorer of the tiny world that computes the score of every prefix."""

    family = "table"

    def __init__(self, tiny: Tiny, score: ScoreFunction) -> None:
        super().__init__(ScorerInfo(objective="table"))
        self.of = score
        self.states = {(*x, *y): (x, y) for x, y in tiny.states}

    def score(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        strengths: Sequence[float],
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """See Scorer.score; 0 for sequences that are impossible in this world."""
        scores = []
        for prefix, group, strength in zip(prefixes, candidates, strengths, strict=True):
            for token in group.tolist():
                state = self.states.get((*prefix.tolist(), token))
                scores.append(0.0 if state is None else self.of(*state, strength))
        return torch.tensor(scores)


def decode(
    tiny: Tiny, score: ScoreFunction, params: GuidanceParams, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The distribution of a token-level decoder: probabilities of all completions, and KL.

    Args:
        tiny: the world.
        score: the scorer.
        params: guidance parameters.
        temperature: for sampling from the fused logits; 0 takes the most likely token.

    Returns:
        [finals] float64, π(y | x), which sums to 1 for each prompt; and the mean over prompts of
        KL(π ‖ π0) in nats, a sum over completions, float64 [].
    """
    guide = Guide({"table": TableScorer(tiny, score)})
    params = params.resolve(guide.registry.scorers)
    states = [state for state in tiny.states if not ended(state[1])]
    logits = tiny.at(tiny.log_pi0).float()  # [all states, vocab]
    number = {state: i for i, state in enumerate(tiny.states)}
    logits = logits[[number[state] for state in states]]  # [states, vocab]
    rows = [(i, Row(params, len(x), prefix=np.array([*x, *y]))) for i, (x, y) in enumerate(states)]
    guide.step(logits, rows)
    if temperature == 0:
        policy = torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0).log()
    else:
        policy = (logits.double() / temperature).log_softmax(1)
    place = {state: i for i, state in enumerate(states)}
    logprobs = torch.stack([_logprob(policy, place, x, y) for x, y in tiny.finals])
    p = logprobs.exp()
    ratio = torch.where(p > 0, logprobs - tiny.probabilities.log(), 0.0)
    return p, (p * ratio).sum() / len(PROMPTS)


def _logprob(policy: Tensor, place: dict[TinyState, int], x: Prefix, y: Prefix) -> Tensor:
    steps = [policy[place[x, y[:t]], token] for t, token in enumerate(y)]
    return torch.stack(steps).double().sum()


def optimum(tiny: Tiny, beta: float) -> tuple[Tensor, Tensor]:
    """π0·exp(βR)/Z of each prompt, in the form that `decode` returns."""
    log_pi0 = tiny.probabilities.log().view(len(PROMPTS), -1)
    weights = log_pi0 + beta * tiny.rewards.view(len(PROMPTS), -1)
    # Not softmax: on a busy machine its threads make it hundreds of times slower on small tensors.
    log_p = weights - weights.logsumexp(1, keepdim=True)
    p = log_p.exp()
    kl = (p * (log_p - log_pi0)).sum() / len(PROMPTS)
    return p.flatten(), kl


def soft_value(tiny: Tiny) -> ScoreFunction:
    """The value for which a token-level decoder equals the optimum: (1/c)·log E_π0 exp(c·R)."""
    return lambda x, y, c: tiny.soft_value(x, y, 1 / c) if c else tiny.value(x, y)


def total_variation(p: Tensor, q: Tensor) -> float:
    """Maximum over prompts of ½·Σ |p − q|, in [0, 1]."""
    return float(((p - q).abs().view(len(PROMPTS), -1).sum(1) / 2).max())


def mean_reward(tiny: Tiny, p: Tensor) -> float:
    """E R, with equal weight for both prompts."""
    return float(p @ tiny.rewards) / len(PROMPTS)


def beta_at(tiny: Tiny, kl: float) -> float:
    """The β at which the optimum's KL is `kl` nats, by bisection; inf above its largest KL."""
    low, high = 0.0, 1e4
    if float(optimum(tiny, high)[1]) < kl:
        return math.inf
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if float(optimum(tiny, middle)[1]) < kl else (low, middle)
    return high
