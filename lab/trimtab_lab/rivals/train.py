"""Train a policy in a world's directory: DIR/rivals/NAME, which transformers can load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from trimtab_lab.worlds.build import PAIRS, SHARPNESS, build_base
from trimtab_lab.worlds.world import World
from trimtab_models import data, networks, pretrained
from trimtab_models.data.fields import rejudged
from trimtab_models.demo.oracles import TextReward
from trimtab_models.training import saves

PROMPTS = 1024
"""Number of training prompts of RL."""
SETTINGS: dict[str, dict[str, Any]] = {
    "rl": {"max_steps": 160, "per_device_train_batch_size": 64, "num_generations": 8},
    "dpo": {"num_train_epochs": 1, "per_device_train_batch_size": 32},
}
SHARED = {"learning_rate": 5e-4, "warmup_steps": 5, "weight_decay": 0.0, "seed": 0}
INTERVALS = {"logging_steps": 5, "save_steps": 20}


def train(
    world: World,
    folder: Path,
    name: str,
    method: Literal["rl", "dpo"],
    rewards: Mapping[str, float],
    beta: float,
    **settings: Any,
) -> Path:
    """Tune a world's base for R = Σ_i w_i·R_i; the target of both methods is π0·exp(βR)/Z.

    DPO's pairs are from folder/rollouts.jsonl, by a judge that prefers with the odds
    exp(sharpness·ΔR); so DPO's own beta is sharpness / β. A run that was killed resumes, and an
    existing policy is not changed. RL leaves the policy after half of its steps too: see `half`.

    Args:
        world: the world.
        folder: the world's directory.
        name: of the policy, under folder/rivals.
        method: "rl" or "dpo".
        rewards: name → w_i.
        beta: β, above 0.
        settings: of TRL's RLOOConfig or DPOConfig; they override those chosen here.

    Returns:
        Its directory.

    Raises:
        ValueError: the world has no such reward, or an earlier run was started with other
            settings.
        OSError: DPO without rollouts.
        SaveFailed: it could not be written.
    """
    if unknown := sorted({*rewards} - {*world.rewards}):
        raise ValueError(
            f"{world.name} has no reward {unknown[0]!r}; expected {', '.join(world.rewards)}."
        )
    out = folder / "rivals" / name
    if out.exists():
        return out
    base = build_base(world, folder)
    tokenizer = pretrained.tokenizer(base)
    work = saves.run_directory(out)
    fields = {**SHARED, **INTERVALS, **SETTINGS[method], **settings}
    if method == "rl":  # of all saves the last two stay: that of half of the steps, and the end
        fields = {**fields, "save_steps": fields["max_steps"] // 2, **settings}
    marks = {"method": method, "rewards": dict(rewards)}
    if method == "rl":
        from trimtab_lab.rivals import rl

        trainer: Any = rl.fit(
            _load(base),
            tokenizer,
            world.prompts("train", PROMPTS, fields["seed"]),
            _sum(world, rewards),
            work,
            beta=beta,
            max_tokens=world.max_tokens,
            fingerprint=marks,
            **fields,
        )
    else:
        from trimtab_models.training import dpo

        width = sum(
            abs(w) * (world.supports[r][1] - world.supports[r][0]) for r, w in rewards.items()
        )
        sharpness = SHARPNESS / width
        trainer = dpo.fit(
            _load(base),
            _load(base),
            tokenizer,
            data.pairs(_pairs(world, folder, rewards, sharpness, fields["seed"]), tokenizer),
            work,
            fingerprint=marks,
            beta=sharpness / beta,
            **fields,
        )
    _place_half(work, trainer.state.max_steps, half(out), tokenizer)
    with saves.placing(out) as part:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(part)
        tokenizer.save_pretrained(part)
    saves.clear(work)
    return out


def half(policy: Path) -> Path:
    """Where the policy after half of the steps of the same training is, if RL trained it."""
    return policy.with_name(f"{policy.name}-half")


def _place_half(work: Path, steps: int, out: Path, tokenizer: Any) -> None:
    """Keep the checkpoint of half of the steps as a policy, if there is one."""
    checkpoint = work / f"checkpoint-{steps // 2}"
    if checkpoint.exists() and not out.exists():
        with saves.placing(out) as part:
            networks.build("language", checkpoint, dtype=torch.float32).save_pretrained(part)
            tokenizer.save_pretrained(part)


def _load(base: Path) -> Any:
    return networks.build("language", base, dtype=torch.float32)


def _sum(world: World, weights: Mapping[str, float]) -> TextReward:
    def reward(prompt: str, completion: str) -> float:
        return sum(w * world.rewards[name](prompt, completion) for name, w in weights.items())

    return reward


def _pairs(
    world: World, folder: Path, weights: Mapping[str, float], sharpness: float, seed: int
) -> list[data.Record]:
    reward = _sum(world, weights)
    labelled = [
        {**rejudged(record), "reward": reward(record["prompt"], record["completion"])}
        for record in data.read(folder / "rollouts.jsonl")
    ]
    return data.preferences(labelled, PAIRS, seed, sharpness)
