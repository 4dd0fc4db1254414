"""Candidates of a row: the smallest set of most likely tokens that reaches `mass`, at most k.

    C(prefix) = {v_1 … v_m},  m = min(k, min{j : Σ_{i≤j} π0(v_i) ≥ mass})

v_1, v_2, … are sorted by falling base probability. mass = 1 always gives k, as in the papers.
Tokens that a grammar or a ban has masked (−inf) are never candidates.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Candidates:
    """Ragged candidates of some rows, padded to the widest; the first `counts[row]` are real."""

    tokens: Tensor  # [rows, k] int64, most likely first; with k = "all" by token
    logprobs: Tensor  # [rows, k] float32, log π0 over the full vocabulary
    counts: Tensor  # [rows] int64, at least 1
    whole: bool = False
    """Whether they are the whole vocabulary in its order, so that there is no tail."""

    @property
    def real(self) -> Tensor:
        """True for candidates, False for padding, [rows, k] bool."""
        width = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return width < self.counts[:, None]

    @property
    def mass(self) -> Tensor:
        """π0(C), [rows]. To cut all other tokens costs −log π0(C) nats, before any steering."""
        return self.logprobs.exp().where(self.real, 0.0).sum(-1).clamp(max=1)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of values over each row's candidates, [rows, k] → [rows]."""
        return torch.where(self.real, values, 0.0).sum(-1) / self.counts

    def rows(self, index: Tensor) -> "Candidates":
        """The candidates of the rows in `index`."""
        return replace(
            self,
            tokens=self.tokens[index],
            logprobs=self.logprobs[index],
            counts=self.counts[index],
        )


def select(logits: Tensor, k: Tensor, mass: Tensor) -> Candidates:
    """Choose the candidates of each row.

    logits: [rows, vocab] float32, after grammar masks and bans. k: [rows] int64, mass: [rows].
    """
    width = min(int(k.max()), logits.shape[1])
    values, tokens = logits.topk(width)  # [rows, width], falling
    logprobs = values - logits.logsumexp(-1, keepdim=True)
    before = logprobs.exp().cumsum(-1).roll(1, -1)  # mass of the more likely tokens
    before[:, 0] = 0
    # Rounding must not reduce k where mass = 1.
    wanted = (before < mass[:, None]) | (mass[:, None] >= 1)
    wanted &= torch.arange(width, device=logits.device) < k[:, None]
    wanted &= logprobs > -torch.inf
    return Candidates(tokens, logprobs, wanted.sum(-1).clamp(min=1))


def every(logits: Tensor) -> Candidates:
    """All tokens of each row as candidates, in the order of the vocabulary: k = "all"."""
    rows, vocab = logits.shape
    tokens = torch.arange(vocab, device=logits.device).expand(rows, vocab)
    counts = torch.full((rows,), vocab, device=logits.device)
    return Candidates(tokens, logits.log_softmax(-1), counts, whole=True)


def select_reference(logits: Tensor, k: Tensor, mass: Tensor) -> list[list[int]]:
    """The definition, token by token."""
    chosen = []
    for row, row_k, row_mass in zip(logits, k.tolist(), mass.tolist(), strict=True):
        p = row.double().softmax(-1)
        tokens: list[int] = []
        for token in p.argsort(descending=True).tolist():
            reached = sum(p[t] for t in tokens) >= row_mass and row_mass < 1
            if tokens and (len(tokens) == row_k or reached or p[token] == 0):
                break
            tokens.append(token)
        chosen.append(tokens)
    return chosen
