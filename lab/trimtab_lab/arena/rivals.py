"""Rivals of guidance: the base itself, tuned for the reward.

A rival's β is scaled β·4/width of its reward's support, since the deviation of rewards is about a
quarter of that width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from trimtab.sampling import Completion
from trimtab_lab.arena.methods import METHODS, SUMS
from trimtab_lab.arena.task import Task, load
from trimtab_lab.arena.workers import pool
from trimtab_models import networks, pretrained
from trimtab_models.demo import rollouts
from trimtab_models.rows import Rollout

MIDDLE = "-middle"
"""What the name of a method with the policy after half of the training ends with."""


def policy(
    task: Task, out: Path, method: str, scaled_beta: float, steps: int | None = None
) -> Path:
    """The directory of a tuned policy; if it does not exist, a worker process trains it.

    steps: of the training; default: those of trimtab_lab.rivals.
    """
    with pool(1) as workers:
        return workers.submit(tune, task.spec, out, method, scaled_beta, steps).result()


def tune(spec: str, out: Path, name: str, scaled_beta: float, steps: int | None = None) -> Path:
    """Train a policy; `policy` runs this in a worker process."""
    from trimtab_lab import rivals

    world, method = load(spec).world, METHODS[name]
    weights = {world.gold: 1.0} if method.target == "gold" else dict(SUMS[world.name])
    settings = {} if steps is None else {"max_steps": steps}

    def beta(rewards: dict[str, float]) -> float:
        ends = [world.supports[reward] for reward in rewards]
        width = sum(w * (high - low) for w, (low, high) in zip(rewards.values(), ends, strict=True))
        return 4 * scaled_beta / width

    if method.rival != "soup":
        kind: Literal["dpo", "rl"] = "dpo" if method.rival == "dpo" else "rl"
        # One training leaves both policies, after half of its steps and at its end.
        last = f"{name.removesuffix(MIDDLE)}-{scaled_beta:g}"
        path = rivals.train(world, out, last, kind, weights, beta(weights), **settings)
        return rivals.half(path) if method.middle else path
    parts = []
    for reward in weights:
        alone = {reward: 1.0}
        parts.append(
            rivals.train(
                world, out, f"rl-{reward}-{scaled_beta:g}", "rl", alone, beta(alone), **settings
            )
        )
    total = sum(weights.values())
    shares = [weight / total for weight in weights.values()]
    return rivals.soup(parts, shares, out / "rivals" / f"{name}-{scaled_beta:g}")


def sample(task: Task, path: Path, base: str, prompts: list[str], seed: int) -> list[Completion]:
    """One answer of a policy to each prompt at temperature 1, with its exact KL to the base."""
    from trimtab_lab.rivals import divergence

    tokenizer = pretrained.tokenizer(base)
    tuned, frozen = (networks.build("language", one, dtype=torch.float32) for one in (path, base))
    records = rollouts.sample(tuned, tokenizer, prompts, seed, most_tokens=task.world.max_tokens)
    answers = [Rollout(r["prompt_token_ids"], r["completion_token_ids"], 0.0) for r in records]
    kl = divergence(tuned, frozen, answers, tokenizer.eos_token_id).tolist()
    return [
        Completion(r["completion_token_ids"], [], nats) for r, nats in zip(records, kl, strict=True)
    ]


def warped(
    base: str,
    prompts: Sequence[Sequence[int]],
    groups: Sequence[Sequence[Completion]],
    temperature: float,
    top_p: float,
) -> list[list[float]]:
    """KL of the base at a temperature or top-p from the base, for each of its answers."""
    from trimtab_lab.rivals.divergence import warping

    model, answers = _pass(base, prompts, groups)
    pad_id = pretrained.tokenizer(base).eos_token_id
    return _grouped(warping(model, answers, pad_id, temperature, top_p).tolist(), groups)


def log_probabilities(
    base: str, prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Completion]]
) -> list[list[float]]:
    """log π0(y | x) of answers: [prompts][answers]."""
    from trimtab_lab.rivals.divergence import log_probabilities

    model, answers = _pass(base, prompts, groups)
    pad_id = pretrained.tokenizer(base).eos_token_id
    return _grouped(log_probabilities(model, answers, pad_id).tolist(), groups)


def _pass(
    base: str, prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Completion]]
) -> tuple[Any, list[Rollout]]:
    """The base, and the answers as it reads them."""
    pairs = zip(prompts, groups, strict=True)
    answers = [Rollout([*ids], one.token_ids, 0.0) for ids, group in pairs for one in group]
    return networks.build("language", base, dtype=torch.float32), answers


def _grouped(values: Sequence[float], groups: Sequence[Sequence[Completion]]) -> list[list[float]]:
    rest = iter(values)
    return [[next(rest) for _ in group] for group in groups]
