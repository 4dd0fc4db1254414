"""Limits of preference objectives in the tiny world, computed where there is no formula."""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from trimtab_lab.worlds.tiny import LENGTH, PROMPTS, Tiny


def comparisons(world: Tiny, sharpness: float, *, partial: bool = True) -> Tensor:
    """How often the judge prefers one state to another: [states, states] float64.

    The sum, over pairs (y, y') of π0(y)·π0(y')·σ(sharpness·(R − R')) and over the lengths
    i = 1 .. max(|y|, |y'|) at which y^{1:i} and y'^{1:i} are compared; the shorter answer stays at
    its end. Without `partial`, only the last i.
    """
    number = {state: i for i, state in enumerate(world.states)}
    odds = torch.sigmoid(sharpness * (world.rewards[:, None] - world.rewards[None]))
    same = torch.tensor([[a[0] == b[0] for b in world.finals] for a in world.finals])
    weight = world.probabilities[:, None] * world.probabilities[None] * odds * same
    lengths = world.rows.completions
    longest = torch.maximum(lengths[:, None], lengths[None])
    wins = torch.zeros(len(number), len(number), dtype=torch.float64)
    for i in range(1, LENGTH + 1):
        at = torch.tensor([number[x, y[:i]] for x, y in world.finals])
        used = weight * (longest >= i if partial else longest == i)
        rows = torch.zeros(len(number), len(at), dtype=torch.float64).index_add_(0, at, used)
        wins.index_add_(1, at, rows)
    return wins


def bradley_terry(world: Tiny, sharpness: float, *, partial: bool = True) -> Tensor:
    """The table that minimises the expected Bradley-Terry loss: [states] float64.

    The loss is convex; this is Newton's method. The mean over each prompt's compared states is 0.
    Rashid et al., "A Critical Look At Tokenwise Reward-Guided Text Generation", Lemma 2: its
    differences are the log-odds with which the judge prefers one prefix's completions to another
    prefix's, as well as one number per prefix can express them. Without `partial` it is
    sharpness·R on whole sequences, and NaN on prefixes, where any number is a minimum.
    """
    wins = comparisons(world, sharpness, partial=partial)
    seen = (wins + wins.T).sum(1) > 0
    prompts = torch.tensor([PROMPTS.index(x) for x, _ in world.states])[seen]
    wins = wins[seen][:, seen]
    # The loss does not determine a constant per prompt; the mean is set to 0.
    pins = (prompts[:, None] == prompts[None]).double()
    scores = torch.zeros(len(wins), dtype=torch.float64)

    def loss(scores: Tensor) -> Tensor:
        return (wins * softplus(scores[None] - scores[:, None])).sum()

    for _ in range(100):
        lost = torch.sigmoid(scores[None] - scores[:, None])  # P(column beats row)
        gradient = (wins.T * lost.T).sum(1) - (wins * lost).sum(1)
        curve = (wins + wins.T) * lost * lost.T
        step = torch.linalg.solve(curve.sum(1).diag() - curve + pins, gradient)
        size = 1.0
        while loss(scores - size * step) > loss(scores) + 1e-15 and size > 1e-6:
            size /= 2
        scores = scores - size * step
        if step.abs().max() < 1e-10:
            break
    scores = scores - (pins @ scores) / pins.sum(1)
    table = torch.full((len(world.states),), math.nan, dtype=torch.float64)
    table[seen] = scores
    return table
