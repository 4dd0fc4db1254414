"""Token rewards: a network trained on ranked generations of the language model."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from trimtab_models.objectives.plackett_luce import PlackettLuce
from trimtab_models.rows import Ranked, Rollout, Rows

Judge = Callable[[Sequence[Rollout]], list[float]]
"""The source of preferences: one number for each generation, higher is better."""


def rank(generations: Sequence[Rollout], k: int, seed: str) -> list[Ranked]:
    """Groups of k labelled generations of one prompt, each best first; ties in random order."""
    rng = random.Random(seed)
    ranked = []
    for start in range(0, len(generations), k):
        group = rng.sample(list(generations[start : start + k]), k)
        group.sort(key=lambda one: -one.label)
        ranked.append(Ranked(group[0].prompt, [one.completion for one in group]))
    return ranked


class TokenRewards:
    """A scalar-head network with r_t = σ(output), trained on rankings."""

    def __init__(self, model: Any, objective: PlackettLuce, pad_id: int) -> None:
        self.model, self.objective, self.pad_id = model, objective, pad_id

    @torch.no_grad()
    def __call__(self, rows: Rows) -> Tensor:
        """r_t of every token of every completion, [rows, steps]."""
        logits = self.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
        return rows.gather(logits[..., 0]).float().sigmoid()

    def learn(
        self,
        ranked: Sequence[Ranked],
        *,
        epochs: float,
        batch_size: int,
        learning_rate: float,
        seed: str,
    ) -> float:
        """Minimise the Plackett-Luce loss; returns its mean over the last tenth of the steps."""
        rng = random.Random(seed)
        optimiser = torch.optim.AdamW(self.model.parameters(), learning_rate)
        steps = max(1, round(epochs * len(ranked) / batch_size))
        losses: list[float] = []
        self.model.train()
        for _ in tqdm(range(steps), desc="token rewards", unit="step", leave=False):
            items = rng.sample(ranked, min(batch_size, len(ranked)))
            rows = self.objective.collate(items, self.pad_id)
            rows = Rows(*(part.to(self.model.device) for part in rows))
            outputs = self.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask)
            loss = self.objective.loss(outputs.logits, rows)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
        self.model.eval()
        last = losses[-max(1, steps // 10) :]
        return sum(last) / len(last)
