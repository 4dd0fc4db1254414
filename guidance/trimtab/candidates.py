"""Candidates of a row: the smallest set of most likely tokens that reaches `mass`, at most k.

    C(prefix) = {v_1 … v_m},  m = min(k, min{j : Σ_{i≤j} π0(v_i) ≥ mass})

v_1, v_2, … are sorted by falling base probability. mass = 1 always gives k, as in the papers.
Tokens that a grammar or a ban has masked (−inf) are never candidates.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

BLOCK = 64
"""Tokens of a block, of which the largest logit is looked at first."""
MANY = 2**17
"""Fewest logits for which blocks pay."""
CACHED = 2**20
"""Most logits whose log-softmax a CPU computes at once, so that it stays in its cache."""


@dataclass
class Candidates:
    """Ragged candidates of some rows, padded to the widest; the first `counts[row]` are real."""

    tokens: Tensor  # [rows, k] int64, most likely first; with k = "all" by token
    logprobs: Tensor  # [rows, k] float32, log π0 over the full vocabulary
    counts: Tensor  # [rows] int64, at least 1
    whole: bool = False
    """Whether they are the whole vocabulary in its order, so that there is no tail."""

    @cached_property
    def real(self) -> Tensor:
        """True for candidates, False for padding, [rows, k] bool."""
        width = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return width < self.counts[:, None]

    @cached_property
    def several(self) -> Tensor:
        """Whether rows have more than one candidate, [rows] bool."""
        return self.counts > 1

    @property
    def mass(self) -> Tensor:
        """π0(C), [rows]. To cut all other tokens costs −log π0(C) nats, before any steering."""
        return self.logprobs.exp().where(self.real, 0.0).sum(-1).clamp(max=1)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of values over each row's candidates, [rows, k] → [rows]."""
        return torch.where(self.real, values, 0.0).sum(-1) / self.counts

    def rows(self, index: Tensor, width: int) -> "Candidates":
        """The candidates of the rows in `index`, of which none has more than `width`."""
        tokens, logprobs = self.tokens[index, :width], self.logprobs[index, :width]
        return Candidates(tokens, logprobs, self.counts[index])


def select(logits: Tensor, k: Tensor, mass: Tensor, width: int) -> Candidates:
    """Choose the candidates of each row.

    logits: [rows, vocab] float32, after grammar masks and bans. k: [rows] int64, mass: [rows], both
    on the same device. width: the largest k, which the host knows.
    """
    width = min(width, logits.shape[1])
    tokens = largest(logits, width)  # [rows, width], falling
    logprobs = log_softmax_at(logits, tokens)
    before = logprobs.exp().cumsum(-1).roll(1, -1)  # mass of the more likely tokens
    before[:, :1] = 0
    # Rounding must not reduce k where mass = 1.
    wanted = (before < mass[:, None]) | (mass[:, None] >= 1)
    wanted &= torch.arange(width, device=logits.device) < k[:, None]
    wanted &= logprobs > -torch.inf
    return Candidates(tokens, logprobs, wanted.sum(-1).clamp(min=1))


def largest(logits: Tensor, k: int) -> Tensor:
    """The k largest of each row, falling: [rows, vocab] → [rows, k] int64.

    In large vocabularies on a CPU, only the k blocks with the largest maxima are sorted: no other
    block has one of the k largest logits.
    """
    rows, vocab = logits.shape
    if logits.device.type != "cpu" or logits.numel() < MANY or 8 * k * BLOCK > vocab:
        return logits.topk(k).indices
    blocks, rest = divmod(vocab, BLOCK)
    main = logits[:, : vocab - rest].unflatten(1, (blocks, BLOCK))
    block = main.amax(-1).topk(k).indices[..., None]  # [rows, k, 1]
    values = main.gather(1, block.expand(-1, -1, BLOCK)).flatten(1)
    tokens = (block * BLOCK + torch.arange(BLOCK)).flatten(1)
    if rest:
        values = torch.cat((values, logits[:, -rest:]), 1)
        tokens = torch.cat((tokens, torch.arange(vocab - rest, vocab).expand(rows, -1)), 1)
    return tokens.gather(1, values.topk(k).indices)


def log_softmax_at(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-probabilities of some tokens: [rows, vocab], [rows, k] → [rows, k]."""
    if logits.device.type != "cpu" or logits.numel() <= CACHED:
        return logits.log_softmax(-1).gather(1, tokens)
    rows = max(CACHED // logits.shape[1], 1)
    parts = zip(logits.split(rows), tokens.split(rows), strict=True)
    return torch.cat([part.log_softmax(-1).gather(1, chosen) for part, chosen in parts])


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
