"""The input of objectives: token ids in memory, padded into rows.

A completion y of T tokens has T prefixes to score. The state after t tokens is at position
prompts + t − 1 of its row, the state before the t-th token one position earlier.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Rollout(NamedTuple):
    """A prompt, a completion (with its EOS, if it ended with one), and its reward or label.

    `label` is the return of the whole answer. `step_rewards` are the rewards that arrive with each
    of its tokens, if any do before the end. They are a part of the label; the rest of it arrives
    with the last token.

    `strength` is c if the completion was sampled from π0·exp(c·R)/Z, guided by soft values; 0 means
    the base. `log_ratios` are log π/π0 of its tokens under that guidance, if known, and `rest` is
    their sum over the tokens cut off at its end. `prefix_rewards` are the rewards of its beginnings
    of 1, 2, … tokens, if known.
    """

    prompt: list[int]
    completion: list[int]
    label: float
    strength: float = 0.0
    log_ratios: Sequence[float] = ()
    rest: float = 0.0
    prefix_rewards: Sequence[float] = ()
    step_rewards: Sequence[float] = ()


class Pair(NamedTuple):
    """A prompt and two completions of it, the first preferred.

    `rewards` are those of the two whole completions, if known. `odds` are measured: (i, j, P),
    where P is the probability that the first i tokens of `chosen`, continued by the base, get a
    higher reward than the first j tokens of `rejected`; a tie counts half.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    rewards: tuple[float, ...] = ()
    odds: tuple[tuple[int, int, float], ...] = ()


class Ranked(NamedTuple):
    """A prompt and K ≥ 2 completions of it, the best first."""

    prompt: list[int]
    completions: list[list[int]]


class Rows(NamedTuple):
    """Right-padded rows of prompt + completion.

    input_ids: [rows, length] int64. attention_mask: [rows, length] int64.
    prompts: [rows] int64, each prompt's length. completions: [rows] int64, each completion's.
    labels: [rows] float32, each completion's reward; 0 where only an order is known.
    strengths: [rows] float32, each completion's guidance strength.
    log_ratios: [rows, steps] float32, log π/π0 of each token of a guided completion; NaN in rows
    where they are unknown, 0 in rows from the base and after a completion's end.
    rests: [rows] float32, the sum of log π/π0 over the tokens cut off each completion.
    prefix_rewards: [rows, steps] float32, the reward of the first t tokens; NaN in rows where they
    are unknown, 0 after a completion's end. Where rewards of steps are known, their sum so far.
    step_rewards: [rows, steps] float32, the rewards that arrive with each token and are not the
    rest that comes at the end; 0 in rows without any.
    odds: [rows, points, 2] float32, for each measured point of a pair (tokens of this side,
    probability that this side wins); NaN where a row has fewer points. See `Pair`.
    groups: [rows] int64, the batch item that a row belongs to; rows of one item are adjacent, the
    best first (both sides of a pair, the K completions of a ranking).
    """

    input_ids: Tensor
    attention_mask: Tensor
    prompts: Tensor
    completions: Tensor
    labels: Tensor
    strengths: Tensor
    log_ratios: Tensor
    rests: Tensor
    prefix_rewards: Tensor
    step_rewards: Tensor
    odds: Tensor
    groups: Tensor

    def gather(self, values: Tensor) -> Tensor:
        """Values after each token: [rows, length, ...] → [rows, longest completion, ...].

        Column t − 1 holds the value of the first t tokens; after a completion's end its last value
        repeats, so that the shorter side of a pair keeps its end.
        """
        return _take(values, self.prompts[:, None] + self._steps())

    def before(self, values: Tensor) -> Tensor:
        """Values just before each token: [rows, length, ...] → [rows, longest completion, ...].

        Column t − 1 holds the output at the position before the t-th token. Prompts have at least
        one token, so this position always exists.
        """
        return _take(values, self.prompts[:, None] + self._steps() - 1)

    def tokens(self) -> Tensor:
        """The completions' tokens, [rows, steps] int64; after an end the last one repeats."""
        return self.gather(self.input_ids)

    def chosen(self, values: Tensor) -> Tensor:
        """From values for every next token, those of the completion's tokens.

        [rows, length, vocab] → [rows, steps]: column t − 1 is values(state before y_t)[y_t].
        """
        rows = torch.arange(len(self.prompts), device=values.device)[:, None]
        return values[rows, self.prompts[:, None] + self._steps() - 1, self.tokens()]

    def so_far(self) -> Tensor:
        """The rewards that have arrived before each token: [rows, steps]."""
        return self.step_rewards.cumsum(-1) - self.step_rewards

    def to_go(self) -> Tensor:
        """The return from each token on, with the reward that it brings itself: [rows, steps].

        Without rewards of steps this is the label everywhere.
        """
        return self.labels[:, None] - self.so_far()

    def mask(self) -> Tensor:
        """True where a column is a token of the completion: [rows, steps] bool."""
        steps = torch.arange(int(self.completions.max()), device=self.completions.device)
        return steps[None] < self.completions[:, None]

    def _steps(self) -> Tensor:
        steps = torch.arange(int(self.completions.max()), device=self.completions.device)
        return torch.minimum(steps[None], self.completions[:, None] - 1)  # [rows, steps]


def _take(values: Tensor, at: Tensor) -> Tensor:
    rows = torch.arange(len(at), device=at.device)[:, None]
    return values[rows, at]


def pad(
    rollouts: Sequence[Rollout],
    pad_id: int,
    groups: Sequence[int] | None = None,
    odds: Sequence[Sequence[tuple[int, float]]] = (),
) -> Rows:
    """Rows of prompt + completion, padded on the right.

    Args:
        rollouts: one for each row.
        pad_id: any token; it is masked.
        groups: the item that each row belongs to; by default each row is its own item.
        odds: (tokens, P) of the measured points of each row; by default there are none.

    Raises:
        ValueError: a prompt or a completion is empty.
    """
    if not all(rollout.completion and rollout.prompt for rollout in rollouts):
        raise ValueError(
            "every prompt and every completion needs at least one token; drop the empty ones first."
        )
    steps = max(len(rollout.completion) for rollout in rollouts)
    return Rows(
        *padded([rollout.prompt + rollout.completion for rollout in rollouts], pad_id),
        torch.tensor([len(rollout.prompt) for rollout in rollouts]),
        torch.tensor([len(rollout.completion) for rollout in rollouts]),
        torch.tensor([rollout.label for rollout in rollouts], dtype=torch.float32),
        torch.tensor([rollout.strength for rollout in rollouts], dtype=torch.float32),
        torch.tensor([_ratios(rollout, steps) for rollout in rollouts], dtype=torch.float32),
        torch.tensor([rollout.rest for rollout in rollouts], dtype=torch.float32),
        torch.tensor(
            [_filled(_known(rollout) or [math.nan] * steps, steps) for rollout in rollouts],
            dtype=torch.float32,
        ),
        torch.tensor(
            [_filled(rollout.step_rewards, steps) for rollout in rollouts], dtype=torch.float32
        ),
        _points(odds or [()] * len(rollouts)),
        torch.tensor(range(len(rollouts)) if groups is None else groups),
    )


def padded(rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """Rows of numbers filled on the right, and the mask of what was there: [rows, width] int64."""
    width = max(map(len, rows))
    return (
        torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows]),
        torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    )


def _points(odds: Sequence[Sequence[tuple[int, float]]]) -> Tensor:
    filled = torch.full((len(odds), max(map(len, odds)), 2), math.nan)
    for row, points in zip(filled, odds, strict=True):
        if points:
            row[: len(points)] = torch.tensor(points)
    return filled


def _ratios(rollout: Rollout, steps: int) -> list[float]:
    if rollout.strength and not rollout.log_ratios:
        return [math.nan] * steps
    return _filled(rollout.log_ratios, steps)


def _known(rollout: Rollout) -> Sequence[float]:
    """The reward of each beginning; with rewards of steps their sum, and at the end the label."""
    if rollout.prefix_rewards or not rollout.step_rewards:
        return rollout.prefix_rewards
    return [*accumulate(rollout.step_rewards[:-1]), rollout.label]


def remaining(rollout: Rollout) -> list[float]:
    """The return from each token on, with the reward that it brings itself; see `Rows.to_go`."""
    steps = rollout.step_rewards or [0.0] * len(rollout.completion)
    return [rollout.label - so_far for so_far in accumulate([0.0, *steps[:-1]])]


def _filled(values: Sequence[float], steps: int) -> list[float]:
    return [*values[:steps], *[0.0] * (steps - len(values))]
