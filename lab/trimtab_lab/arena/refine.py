"""Guided answers for refinement: a return distribution guides the base and learns from the answers.

If a good answer of the base has a probability of 1/1000, its rollouts hold only a few good answers,
and the upper ends of the histograms, which decide log E exp(β·R), are inaccurate. Guided answers
are good or almost good; the objective corrects for the strength at which they were sampled
(trimtab_models.objectives.distribution), so base and guided answers fit the same histogram. The
strengths are those at which the optimum over all prompts is `KLS` nats from the base, at most
`MAX_SHARE` of the largest possible KL.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.params import GuidanceParams
from trimtab.sampling import Completion
from trimtab_lab.arena.frontier import sampled
from trimtab_lab.arena.methods import rounds, trainings
from trimtab_lab.arena.scale import Scale
from trimtab_lab.arena.task import Task
from trimtab_lab.worlds import build
from trimtab_models import data, pretrained

KLS = (1.0, 2.5)
MAX_SHARE = 0.8
"""Maximum KL as a share of the KL of the best answers."""


CANDIDATES: dict[str, Any] = {"k": 32, "mass": 0.99, "tail": "mean", "trace": True}


def strengths(rewards: Sequence[float]) -> list[float]:
    """β at which the optimum over these rewards of the base is `KLS` nats from it."""
    frontier = sampled(np.asarray(rewards, dtype=float)[None])
    kl = frontier.kl[:, 0]
    targets = np.minimum(KLS, MAX_SHARE * kl[-1])
    return [float(beta) for beta in np.interp(targets, kl, frontier.beta)]


def guided(task: Task, out: Path, scale: Scale, first: str, reward: str) -> Path:
    """A file with the training data of a scorer and answers that it guided; sampled if absent.

    Args:
        task: has the base and the training prompts.
        out: the arena's directory.
        scale: `scale.guided` answers to each prompt, half of them at each strength.
        first: name of the scorer, a return distribution.
        reward: name of the reward that labels the answers.
    """
    path = out / "data" / f"{reward}-by-{first}.jsonl"
    if path.exists():
        return path
    rollouts = list(data.read(out / "data" / f"{reward}-rollouts.jsonl"))
    betas = strengths([record["reward"] for record in rollouts])
    earlier = trainings(task.world.name)[first].refines
    known = data.read(guided(task, out, scale, earlier, reward)) if earlier else rollouts
    seed = scale.seed + 1 + len(betas) * rounds(task.world.name, first)
    answers = _sample(task, out, scale, out / "scorers" / first, betas, seed)
    labelled = [
        {**record, "reward": task.world.rewards[reward](record["prompt"], record["completion"])}
        for record in answers
    ]
    data.write(path, [*known, *labelled])
    return path


def _sample(
    task: Task, out: Path, scale: Scale, scorer: Path, betas: Sequence[float], seed: int
) -> list[data.Record]:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from trimtab.adapters.vllm.offline import Sampler

    base, world = build.build_base(task.world, out), task.world
    sampler = Sampler(str(base), {"scorer": str(scorer)}, **task.engine)
    tokenizer = pretrained.tokenizer(base)
    texts = world.prompts("train", scale.rollout_prompts, scale.seed)
    prompts = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    records = []
    for i, beta in enumerate(betas):
        groups = sampler.sample(
            prompts,
            scale.guided // len(betas),
            seed=seed + i,
            temperature=1.0,
            max_tokens=world.max_tokens,
            params=GuidanceParams(beta=beta, scorers={"scorer": 1.0}, **CANDIDATES),
        )
        for text, ids, group in zip(texts, prompts, groups, strict=True):
            records += [_record(tokenizer, text, ids, one, beta) for one in group]
    return records


def _record(
    tokenizer: Any, text: str, prompt: list[int], one: Completion, beta: float
) -> data.Record:
    return {
        "prompt": text,
        "completion": tokenizer.decode(one.token_ids, skip_special_tokens=True),
        "prompt_token_ids": prompt,
        "completion_token_ids": one.token_ids,
        "strength": beta,
        "log_ratios": [round(ratio, 5) for ratio in one.log_ratios],
    }
