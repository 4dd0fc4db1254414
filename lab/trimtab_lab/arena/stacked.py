"""Guidance on top of a tuned policy: an engine of its own, in a process of its own.

The policy takes the place of the base. What an answer then spends is measured to π0:

    KL = Σ_t KL(π ‖ policy) + log policy(y | x) − log π0(y | x)

The first part is exact at every step; the mean of the rest over answers is unbiased, with the noise
of sampling, so that a single answer's value may be below 0.
"""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab_lab.arena import rivals
from trimtab_lab.arena.frontier import Floats
from trimtab_lab.arena.method import Method
from trimtab_lab.arena.workers import pool

if TYPE_CHECKING:
    from trimtab_lab.arena.bench import Answers, Bench

_SAMPLERS: dict[str, Any] = {}
"""Of a worker process, by policy and scorer."""


def sample(bench: "Bench", policy: Path, method: Method, scaled_beta: float, n: int) -> "Answers":
    """n answers to each of a bench's prompts, and what the scorer forwarded for them."""
    assert method.scorer is not None
    scorers = {method.scorer: bench.scorers[method.scorer]}
    arguments = (str(policy), scorers, dict(bench.task.engine), bench.prompts, n)
    request = bench.request(method, scaled_beta)
    groups, spent = _pool(str(policy)).submit(_sample, *arguments, request).result()
    plain = rivals.log_probabilities(bench.base, bench.prompts, groups)
    rows = [
        [
            replace(one, kl=one.kl + sum(one.logprobs) - log_pi0)
            for one, log_pi0 in zip(group, row, strict=True)
        ]
        for group, row in zip(groups, plain, strict=True)
    ]
    return rows, {"forwarded": spent}


@lru_cache(maxsize=1)
def _pool(policy: str) -> ProcessPoolExecutor:
    """The process of a policy; the one before it ends."""
    return pool(1)


def _sample(
    policy: str,
    scorers: dict[str, Any],
    engine: dict[str, Any],
    prompts: list[list[int]],
    n: int,
    request: dict[str, Any],
) -> tuple[Any, Floats]:
    """`sample`, in the worker process."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from trimtab.adapters.vllm.offline import Sampler
    from trimtab_lab.arena.bench import forwarded

    key = json.dumps([policy, scorers])
    if key not in _SAMPLERS:
        _SAMPLERS[key] = Sampler(policy, scorers, **engine)
    sampler = _SAMPLERS[key]
    before = forwarded(sampler)
    groups = sampler.sample(prompts, n, **request)
    return groups, forwarded(sampler) - before
