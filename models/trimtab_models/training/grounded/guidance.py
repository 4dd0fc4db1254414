"""Token rewards: a network trained on ranked generations of the language model."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from trimtab_models.data.derive import split
from trimtab_models.objectives.plackett_luce import PlackettLuce
from trimtab_models.rows import Ranked, Rollout, Rows
from trimtab_models.training.grounded.settings import GroundedConfig
from trimtab_models.training.grounded.stopping import Stopper

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

    def learn(self, ranked: Sequence[Ranked], config: GroundedConfig, seed: str) -> float:
        """Minimise the Plackett-Luce loss; returns its mean over the last tenth of the steps.

        With `reward_stopping`, a share of the rankings is held out and evaluated after each epoch.
        """
        rng, size = random.Random(seed), config.reward_batch_size
        optimiser = torch.optim.AdamW(
            self.model.parameters(), config.reward_learning_rate, weight_decay=config.weight_decay
        )
        held_out, stopper = list[Ranked](), None
        if config.reward_stopping is not None:
            stopper = Stopper(config.reward_stopping, self.model, optimiser)
            share = config.reward_stopping.validation
            ranked, held_out = split(list(ranked), share, config.seed)
        steps = max(1, round(config.reward_epochs * len(ranked) / size))
        epoch = max(1, round(len(ranked) / size))
        losses: list[float] = []
        self.model.train()
        for step in tqdm(range(1, steps + 1), desc="token rewards", unit="step", leave=False):
            loss = self._loss(rng.sample(ranked, min(size, len(ranked))))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
            if stopper and (step % epoch == 0 or step == steps):
                stopper.see(self._validation_loss(held_out, size))
                if stopper.ended:
                    break
        if stopper:
            stopper.keep_best()
        self.model.eval()
        last = losses[-max(1, len(losses) // 10) :]
        return sum(last) / len(last)

    def _loss(self, ranked: Sequence[Ranked]) -> Tensor:
        rows = self.objective.collate(ranked, self.pad_id)
        rows = Rows(*(part.to(self.model.device) for part in rows))
        outputs = self.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask)
        return self.objective.loss(outputs.logits, rows)

    @torch.no_grad()
    def _validation_loss(self, ranked: Sequence[Ranked], batch_size: int) -> float:
        """The mean loss of some rankings."""
        self.model.eval()
        batches = [ranked[i : i + batch_size] for i in range(0, len(ranked), batch_size)]
        total = sum(len(batch) * self._loss(batch).item() for batch in batches)
        self.model.train()
        return total / len(ranked)
