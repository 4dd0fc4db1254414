"""Token mean reciprocal rank: where guidance places the tokens of a good answer.

Of n answers of the base to a prompt the one of the highest gold reward is the reference y. With the
rank of a token among all tokens by their probability under a method's own distribution,

    MRR = (1/T) Σ_t 1 / rank_t(y_t),    rank_t(v) = 1 + #{u : π(u | x, y^{1:t−1}) > π(v | …)}

A token that the method never samples counts 0. A temperature keeps every rank, and top-p those of
its nucleus. Source: Lee et al. 2023, "Learning to Rank Generation with Pairwise Partial Rewards",
section 5.2, which a review of PARGS asks for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.params import GuidanceParams
from trimtab_lab.arena.frontier import Floats
from trimtab_lab.rivals.divergence import log_distributions, warp
from trimtab_models import networks, pretrained
from trimtab_models.rows import Rollout, pad


@dataclass(frozen=True)
class References:
    """Answers whose tokens are ranked, one to each prompt."""

    prompts: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]

    @property
    def prefixes(self) -> list[list[int]]:
        """What stands before each token of each answer, answer by answer."""
        return [
            [*prompt, *answer[:t]]
            for prompt, answer in zip(self.prompts, self.answers, strict=True)
            for t in range(len(answer))
        ]

    @property
    def tokens(self) -> list[int]:
        """Each token of each answer."""
        return [token for answer in self.answers for token in answer]

    def means(self, values: Sequence[float]) -> Floats:
        """The mean over each answer of values of its tokens: [prompts]."""
        ends = np.cumsum([len(answer) for answer in self.answers])[:-1]
        return np.array([part.mean() for part in np.split(np.asarray(values, dtype=float), ends)])


def plain(
    references: References, model: str | Path, temperature: float = 1.0, top_p: float = 1.0
) -> list[float]:
    """1/rank of each token under a language model: the base, or a tuned policy."""
    rows = _log_probabilities(references, model)
    if temperature > 0:
        rows = [warp(row, temperature, top_p) for row in rows]
    values: list[float] = []
    for row, answer in zip(rows, references.answers, strict=True):
        own = row.gather(-1, torch.tensor(answer)[:, None])  # [steps, 1]
        ranks = 1 + (row > own).sum(-1)
        values += torch.where(own[:, 0] > -torch.inf, 1 / ranks, 0.0).tolist()
    return values


def guided(references: References, base: str, sampler: Any, params: GuidanceParams) -> list[float]:
    """1/rank of each token under guidance, by the served decoder.

    Args:
        references: prompts and answers.
        base: directory of the base, for the ranks of its tail.
        sampler: trimtab.adapters.vllm.offline.Sampler.
        params: of the method; k must be a number.
    """
    steps = sampler.steps(references.prefixes, params)
    tables = _log_probabilities(references, base)
    log_pi0 = [row for table in tables for row in table]  # [vocab] each
    return [
        reciprocal(step, token, row, cut=params.tail == "truncate")
        for step, token, row in zip(steps, references.tokens, log_pi0, strict=True)
    ]


def reciprocal(step: Mapping[str, Any], token: int, log_pi0: Tensor, *, cut: bool) -> float:
    """1/rank of a token at one step.

    Args:
        step: of a trace: candidates, their log-probabilities, guided and not.
        token: any token.
        log_pi0: [vocab] log-probabilities of the base at this step.
        cut: whether the tail is never sampled; else it has the mean bonus of the candidates.
    """
    candidates = step.get("candidates")
    if not candidates:  # the step was not steered
        return 1 / (1 + int((log_pi0 > log_pi0[token]).sum()))
    guided = torch.tensor(step["guided_logprobs"], dtype=log_pi0.dtype)
    log_pi = torch.full_like(log_pi0, -torch.inf)
    if not cut:
        moved = guided - torch.tensor(step["logprobs"], dtype=log_pi0.dtype)
        log_pi = log_pi0 + moved.mean()
    log_pi[candidates] = guided
    if log_pi[token] == -torch.inf:
        return 0.0
    return 1 / (1 + int((log_pi > log_pi[token]).sum()))


def _log_probabilities(references: References, model: str | Path) -> list[Tensor]:
    """log π of every token before each token of each answer: [steps, vocab] for each prompt."""
    network = networks.build("language", model, dtype=torch.float32)
    pad_id = pretrained.tokenizer(model).eos_token_id
    pairs = zip(references.prompts, references.answers, strict=True)
    rows = pad([Rollout([*prompt], [*answer], 0.0) for prompt, answer in pairs], pad_id)
    with torch.inference_mode():
        tables = log_distributions(network, rows)  # [prompts, steps, vocab]
    return [table[: len(answer)] for table, answer in zip(tables, references.answers, strict=True)]
