"""Trained scorers of smollm2, made by one command: rollouts, probes, and a check that they steer.

    CACHE/smollm2-scorers/rollouts/WORLD.jsonl    answers of the base to training prompts
                          data/NAME.jsonl         the same with the reward that a scorer learns
                          NAME/                   the scorer, with its report

A part that exists is not made again, and an interrupted one goes on. The answers of a world serve
all its scorers, and so do the base's states of them.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from trimtab.logs import configure_logging
from trimtab.params import GuidanceParams
from trimtab.sampling import RolloutSampling
from trimtab_lab.arena.stats import estimate
from trimtab_lab.arena.task import Task, load
from trimtab_lab.arena.workers import pool
from trimtab_lab.rollouts.journal import Journal
from trimtab_lab.rollouts.prompts import RolloutPrompt
from trimtab_lab.rollouts.run import roll_out
from trimtab_models import checkpoint, data, outputs, pretrained, smollm2
from trimtab_models.data import Record
from trimtab_models.data.fields import rejudged
from trimtab_models.training.config import TrainConfig
from trimtab_models.training.run import run
from trimtab_models.validation import Estimate


@dataclass(frozen=True)
class Plan:
    """What a scorer learns, and from how much.

    reward: name of a reward of the world. judged: the reward that the check reports. prompts, n:
    training prompts, and answers to each. options: of the objective.
    """

    world: str
    reward: str
    judged: str
    prompts: int
    n: int
    options: dict[str, Any]


PLANS = {
    "kindness-probe": Plan("everyday", "kindness", "kindness", 432, 5, {}),
    "plainness-probe": Plan("everyday", "plainness", "plainness", 432, 5, {}),
    "brevity-probe": Plan("everyday", "brevity", "brevity", 432, 5, {}),
    "instructions-probe": Plan("instructions", "graded", "success", 600, 2, {}),
}
TEST_PROMPTS, ANSWERS, PILOT = 48, 2, 24
"""Prompts and answers of the check, and training prompts by which its strength is found."""
SEED = 0


@dataclass(frozen=True)
class Check:
    """How a scorer steers: mean reward of the base and of guided answers, and their nats."""

    name: str
    judged: str
    beta: float
    base: Estimate
    guided: Estimate
    kl: Estimate

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.judged} {self.base} → {self.guided} at {self.kl} nats "
            f"(β = {self.beta:.3g}, {TEST_PROMPTS} held-out prompts, {ANSWERS} answers each)"
        )


def chosen(names: Sequence[str]) -> dict[str, Plan]:
    """The plans of these scorers.

    Raises:
        ValueError: there is no such scorer.
    """
    if unknown := sorted(set(names) - set(PLANS)):
        raise ValueError(f"there is no scorer {unknown[0]!r}; the scorers are {', '.join(PLANS)}.")
    return {name: PLANS[name] for name in names}


def make(plans: Mapping[str, Plan]) -> list[Check]:
    """Make scorers that are missing, and check all of them.

    Raises:
        OSError, TrimtabError, ValueError: something cannot be fetched, written or sampled.
    """
    worlds = {plan.world: plan for plan in plans.values()}
    for world in worlds:
        base_of(load(world))  # fetches it
    shelf = outputs.claim(smollm2.shelf(), smollm2.shelf_mark())
    for world, plan in worlds.items():
        if any(one.world == world and not (shelf / name).exists() for name, one in plans.items()):
            with pool(1) as workers:  # an engine keeps its memory until its process ends
                workers.submit(_sample, plan, shelf).result()
    for name, plan in plans.items():
        _train(name, plan, shelf)
    checked = []
    for world in worlds:
        mine = {name: plan for name, plan in plans.items() if plan.world == world}
        with pool(1) as workers:
            checked += workers.submit(_check, mine, shelf).result()
    return checked


def _sampler(task: Task, scorers: dict[str, str]) -> Any:
    configure_logging()  # before vLLM is imported
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from trimtab.adapters.vllm.offline import Sampler

    return Sampler(base_of(task), scorers, **task.engine)


def base_of(task: Task) -> str:
    """The directory of a task's base."""
    base = task.world.base
    return str(base() if callable(base) else base)


def _sample(plan: Plan, shelf: Path) -> None:
    task = load(plan.world)
    answers(task, plan, shelf, lambda: _sampler(task, {}))


def answers(task: Task, plan: Plan, shelf: Path, sampler: Callable[[], Any]) -> None:
    """Sample the answers of the base to a world's training prompts that its file lacks.

    sampler: makes the engine.
    """
    path = shelf / "rollouts" / f"{plan.world}.jsonl"
    path.parent.mkdir(exist_ok=True)
    tokenizer = pretrained.tokenizer(base_of(task))
    texts = task.world.prompts("train", plan.prompts, SEED)
    prompts = [
        RolloutPrompt(text, tokenizer(text, add_special_tokens=False).input_ids) for text in texts
    ]
    sampling = RolloutSampling(
        n=plan.n, temperature=1.0, max_tokens=task.world.max_tokens, seed=SEED
    )
    settings = {"world": plan.world, "prompts": len(texts), "n": plan.n, "seed": SEED}
    with Journal(path, settings, ("index", "sample")) as journal:
        if len(journal.records) < len(prompts) * plan.n:
            roll_out(sampler(), prompts, sampling, None, journal)


def _train(name: str, plan: Plan, shelf: Path) -> None:
    out = shelf / name
    if out.exists():
        return
    task = load(plan.world)
    path = shelf / "data" / f"{name}.jsonl"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        data.write(path, labelled(task, plan, shelf))
    run(settings(plan, smollm2.NAME, path, out))


def labelled(task: Task, plan: Plan, shelf: Path) -> Iterator[Record]:
    """The answers of a world with a plan's reward, also of their beginnings."""
    tokenizer = pretrained.tokenizer(base_of(task))
    reward = task.world.rewards[plan.reward]
    records = list(data.read(shelf / "rollouts" / f"{plan.world}.jsonl"))
    for record in tqdm(records, desc=plan.reward, unit="answer"):
        ids = record["completion_token_ids"]
        parts = (tokenizer.decode(ids[: t + 1], skip_special_tokens=True) for t in range(len(ids)))
        rewards = [reward(record["prompt"], part) for part in parts]
        yield {**rejudged(record), "reward": rewards[-1], "prefix_rewards": rewards}


def settings(plan: Plan, base: str, path: Path, out: Path) -> TrainConfig:
    """The settings of a scorer's training."""
    return TrainConfig.model_validate(
        {
            "objective": "gains",
            "options": plan.options,
            "base": base,
            "data": str(path),
            "validation": 0.1,
            "out": out,
            "probe": {},
            "seed": SEED,
        }
    )


def _check(plans: Mapping[str, Plan], shelf: Path) -> list[Check]:
    [world] = {plan.world for plan in plans.values()}
    task = load(world)
    sampler = _sampler(task, {name: str(shelf / name) for name in plans})
    return list(checks(task, plans, shelf, sampler))


def checks(task: Task, plans: Mapping[str, Plan], shelf: Path, sampler: Any) -> Iterator[Check]:
    """Compare guided answers at about 1 nat with the base's, to the test prompts of a world."""
    train, test = (
        task.world.prompts(*of, SEED) for of in (("train", PILOT), ("test", TEST_PROMPTS))
    )

    def sample(texts: Sequence[str], n: int, params: GuidanceParams | None) -> Any:
        prompts = [sampler.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        return sampler.sample(
            prompts,
            n,
            seed=SEED,
            temperature=1.0,
            max_tokens=task.world.max_tokens,
            params=params,
        )

    def rewarded(groups: Any, judged: str) -> Estimate:
        reward = task.world.rewards[judged]
        return estimate(
            np.array(
                [
                    np.mean([reward(text, _text(sampler, one)) for one in group])
                    for text, group in zip(test, groups, strict=True)
                ]
            )
        )

    base = sample(test, ANSWERS, None)
    for name, plan in tqdm(plans.items(), desc="checks", unit="scorer"):
        beta = 4 / checkpoint.read_info(shelf / name).deviation
        for _ in range(2):  # KL is nearly a multiple of β²
            pilot = sample(train, 1, _params(name, beta))
            spent = float(np.mean([one.kl for [one] in pilot]))
            beta = beta / max(spent, 0.01) ** 0.5
        guided = sample(test, ANSWERS, _params(name, beta))
        kl = estimate(np.array([np.mean([one.kl for one in group]) for group in guided]))
        before, after = (rewarded(groups, plan.judged) for groups in (base, guided))
        yield Check(name, plan.judged, beta, before, after, kl)


def _params(name: str, beta: float) -> GuidanceParams:
    return GuidanceParams(scorers={name: 1.0}, beta=min(beta, 100.0))


def _text(sampler: Any, answer: Any) -> str:
    return str(sampler.tokenizer.decode(answer.token_ids, skip_special_tokens=True))
