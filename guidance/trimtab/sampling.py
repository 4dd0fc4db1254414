"""Sampling from the base: requests, completions, and the seed of each."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.params import GuidanceParams
from trimtab.scoring.text import PromptContext


@dataclass(frozen=True)
class RolloutSampling:
    """Settings of sampling; `max_tokens` counts the whole answer."""

    n: int = 8
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int = 0
    params: GuidanceParams | None = None


@dataclass(frozen=True)
class SamplingRequest:
    """One completion to sample; `key` is chosen by the caller."""

    key: Any
    prompt_token_ids: Sequence[int]
    seed: int
    max_tokens: int
    context: PromptContext = field(default_factory=PromptContext)


@dataclass(frozen=True)
class Completion:
    """A sampled completion: tokens, with EOS if sampled, log π0 of each at temperature 1, and the
    nats of guidance, Σ KL(π ‖ π0), 0 without it. With a trace, also log π/π0 of each token.
    Of the nats, `kl_tail` are those that cutting the tail costs before any steering.
    """

    token_ids: list[int]
    logprobs: list[float]
    kl: float = 0.0
    log_ratios: list[float] = field(default_factory=list)
    kl_tail: float = 0.0


def log_ratios(trace: Iterable[Mapping[str, Any]]) -> list[float]:
    """log π/π0 of each token of a traced answer; for a token of the tail, that of the tail."""
    ratios = []
    for step in trace:
        pairs = zip(step["guided_logprobs"], step["logprobs"], strict=True)
        moved = [guided - base for guided, base in pairs]
        at = (
            step["candidates"].index(step["token"]) if step["token"] in step["candidates"] else None
        )
        ratios.append(sum(moved) / len(moved) if at is None else moved[at])
    return ratios


def sample_seed(seed: int, prompt: int, sample: int) -> int:
    """The seed of one completion, from the run's seed and its place in the run."""
    digest = hashlib.sha256(f"{seed} {prompt} {sample}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
