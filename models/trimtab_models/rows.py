"""The input of objectives: token ids in memory, padded into rows.

A completion y of T tokens has T prefixes to score. The state after t tokens is at position
prompts + t − 1 of its row, the state before the t-th token one position earlier.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Rollout(NamedTuple):
    """A prompt, a completion (with its EOS, if it ended with one), and its reward or label.

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


class Pair(NamedTuple):
    """A prompt and two completions of it, the first preferred."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


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
    are unknown, 0 after a completion's end.
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


def pad(rollouts: Sequence[Rollout], pad_id: int, groups: Sequence[int] | None = None) -> Rows:
    """Rows of prompt + completion, padded on the right.

    Args:
        rollouts: one for each row.
        pad_id: any token; it is masked.
        groups: the item that each row belongs to; by default each row is its own item.

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
            [_filled(rollout.prefix_rewards or [math.nan] * steps, steps) for rollout in rollouts],
            dtype=torch.float32,
        ),
        torch.tensor(range(len(rollouts)) if groups is None else groups),
    )


def padded(rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """Rows of numbers filled on the right, and the mask of what was there: [rows, width] int64."""
    width = max(map(len, rows))
    return (
        torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows]),
        torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    )


def _ratios(rollout: Rollout, steps: int) -> list[float]:
    if rollout.strength and not rollout.log_ratios:
        return [math.nan] * steps
    return _filled(rollout.log_ratios, steps)


def _filled(values: Sequence[float], steps: int) -> list[float]:
    return [*values[:steps], *[0.0] * (steps - len(values))]
