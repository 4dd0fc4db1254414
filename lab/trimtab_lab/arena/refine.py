"""Answers that a return distribution guided itself, from which it learns what the base seldom says.

Where the base's chance of a good answer is 1 in 1000, its rollouts hold a handful of them, and the
upper ends of the histograms, which decide log E exp(β·R), are guesses. Guided answers are good ones
and near misses; the objective reads them by the strength they were drawn with
(trimtab_models.objectives.distribution), so base and guided answers fit one and the same histogram.
The strengths are those at which the optimum would stand `KLS` nats from the base, all prompts
together, or nearly all of the nats there are.
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
MOST = 0.8
"""Share of the nats that the very best answers are from the base: the most that is asked for."""


CANDIDATES: dict[str, Any] = {"mass": 0.99, "tail": "mean", "trace": True}


def strengths(rewards: Sequence[float]) -> list[float]:
    """β at which the optimum over these rewards of the base is `KLS` nats from it."""
    frontier = sampled(np.asarray(rewards, dtype=float)[None])
    kl = frontier.kl[:, 0]
    wanted = np.minimum(KLS, MOST * kl[-1])
    return [float(beta) for beta in np.interp(wanted, kl, frontier.beta)]


def guided(task: Task, out: Path, scale: Scale, first: str, reward: str) -> Path:
    """A file of what a scorer was trained on and of answers that it guides; drawn if absent.

    Args:
        task: whose base and training prompts.
        out: the arena's directory.
        scale: how many answers: `scale.guided` to each prompt, a half at each strength.
        first: name of the scorer, a return distribution.
        reward: what labels them.
    """
    path = out / "data" / f"{reward}-by-{first}.jsonl"
    if path.exists():
        return path
    rollouts = list(data.read(out / "data" / f"{reward}-rollouts.jsonl"))
    betas = strengths([record["reward"] for record in rollouts])
    earlier = trainings(task.world.name)[first].refines
    known = data.read(guided(task, out, scale, earlier, reward)) if earlier else rollouts
    seed = scale.seed + 1 + len(betas) * rounds(task.world.name, first)
    drawn = _draw(task, out, scale, out / "scorers" / first, betas, seed)
    labelled = [
        {**record, "reward": task.world.rewards[reward](record["prompt"], record["completion"])}
        for record in drawn
    ]
    data.write(path, [*known, *labelled])
    return path


def _draw(
    task: Task, out: Path, scale: Scale, scorer: Path, betas: Sequence[float], seed: int
) -> list[data.Record]:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from trimtab.adapters.vllm.offline import Sampler

    base, world = build.build_base(task.world, out), task.world
    sampler = Sampler(str(base), {"scorer": str(scorer)}, **task.engine)
    tokenizer = pretrained.tokenizer(base)
    texts = world.prompts("train", scale.rollout_prompts, scale.seed)
    prompts = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    drawn = []
    for at, beta in enumerate(betas):
        groups = sampler.sample(
            prompts,
            scale.guided // len(betas),
            seed=seed + at,
            temperature=1.0,
            max_tokens=world.max_tokens,
            params=GuidanceParams(beta=beta, scorers={"scorer": 1.0}, **CANDIDATES),
        )
        for text, ids, group in zip(texts, prompts, groups, strict=True):
            drawn += [_record(tokenizer, text, ids, one, beta) for one in group]
    return drawn


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
