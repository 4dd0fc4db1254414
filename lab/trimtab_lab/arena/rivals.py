"""Rivals of guidance: the base itself, tuned for the reward.

A rival's β is scaled β·4/width of its reward's support, since the deviation of rewards is about a
quarter of that width.
"""

from pathlib import Path
from typing import Literal

import torch

from trimtab.sampling import Completion
from trimtab_lab.arena.methods import METHODS, SUMS
from trimtab_lab.arena.task import Task, load
from trimtab_lab.arena.workers import pool
from trimtab_models import networks, pretrained
from trimtab_models.demo import rollouts
from trimtab_models.rows import Rollout


def policy(task: Task, out: Path, method: str, scaled_beta: float) -> Path:
    """The directory of a tuned policy; if it does not exist, a worker process trains it."""
    with pool(1) as workers:
        return workers.submit(tune, task.spec, out, method, scaled_beta).result()


def tune(spec: str, out: Path, name: str, scaled_beta: float) -> Path:
    """Train a policy; `policy` runs this in a worker process."""
    from trimtab_lab import rivals

    world, method = load(spec).world, METHODS[name]
    weights = {world.gold: 1.0} if method.target == "gold" else dict(SUMS[world.name])

    def beta(rewards: dict[str, float]) -> float:
        ends = [world.supports[reward] for reward in rewards]
        width = sum(w * (high - low) for w, (low, high) in zip(rewards.values(), ends, strict=True))
        return 4 * scaled_beta / width

    if method.rival != "soup":
        kind: Literal["dpo", "rl"] = "dpo" if method.rival == "dpo" else "rl"
        return rivals.train(world, out, f"{name}-{scaled_beta:g}", kind, weights, beta(weights))
    parts = []
    for reward in weights:
        alone = {reward: 1.0}
        parts.append(
            rivals.train(world, out, f"rl-{reward}-{scaled_beta:g}", "rl", alone, beta(alone))
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
