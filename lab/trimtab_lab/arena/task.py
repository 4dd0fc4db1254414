"""The task of an arena: a built-in world by name, or a YAML file about the user's own model.

name: support                  base: ./base, a hub name or smollm2
prompts: {train: a.jsonl, test: b.jsonl}        files as for `trimtab rollout`
rewards: {helpful: module:function}             specifications as for `trimtab rollout --reward`
gold: helpful                  supports: {helpful: [0, 1]}     bins: 25      max_tokens: 256
scorers: {distribution: ./mine}                 already trained; others are trained here
methods: [base, pargs, distribution]            default: all
engine: {dtype: bfloat16}                       vLLM's options
"""

import logging
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trimtab import reasons
from trimtab.errors import TrimtabError
from trimtab_lab.arena.methods import COMPOSED, GYM, METHODS, REWARD, SUMS, TRAININGS
from trimtab_lab.rollouts.prompts import RolloutPrompt, check_lengths, read
from trimtab_lab.worlds import WORLDS, World, gym
from trimtab_models import bases, networks, pretrained, rewards
from trimtab_models.data.fields import shared

log = logging.getLogger(__name__)

ENGINE: Mapping[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_num_seqs": 128,
    "use_tqdm_on_load": False,
}
REAL_ENGINE: Mapping[str, Any] = {**ENGINE, "dtype": "bfloat16", "max_model_len": 512}
STEERS: Mapping[str, tuple[str, Literal["pair", "text"]]] = {
    "everyday": ("trimtab_models.smollm2.rewards:kindness", "pair"),
    "instructions": ("trimtab_models.smollm2.unfinished:promise", "text"),
}
"""Real world → the function that `REWARD` is, and what it reads. Success does not judge an
unfinished answer, so *instructions* has what such an answer promises."""


@dataclass(frozen=True)
class Task:
    """A world, and how the arena runs on it."""

    spec: str
    """The world's name, or the path of the file."""
    world: World
    scorers: Mapping[str, str | Mapping[str, Any]] = field(default_factory=dict)
    """Scorers that exist already: name of a training → path, or the fields of a ScorerSpec."""
    methods: Sequence[str] | None = None
    engine: Mapping[str, Any] = field(default_factory=lambda: ENGINE)
    judge: str | None = None
    """Specification of a judge that compares answers with the base's answers."""


class Config(BaseModel):
    """The YAML file; paths are relative to the working directory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    base: str
    prompts: dict[str, Path]
    rewards: dict[str, str] = Field(min_length=1)
    gold: str
    supports: dict[str, tuple[float, float]] = Field(description="of each trained reward")
    bins: int = Field(25, ge=2)
    max_tokens: int = Field(128, ge=1)
    scorers: dict[str, str] = {}
    methods: list[str] | None = None
    engine: dict[str, Any] = {}
    judge: str | None = Field(None, pattern="^judge:")

    @model_validator(mode="after")
    def _check(self) -> "Config":
        if self.gold not in self.rewards:
            raise ValueError(f"gold must be one of the rewards: {', '.join(self.rewards)}")
        if self.gold not in self.supports:
            raise ValueError(f"supports must hold the lowest and highest value of {self.gold}")
        if set(self.prompts) != {"train", "test"}:
            raise ValueError("prompts must name two files, train and test")
        if self.name in WORLDS:
            raise ValueError(f"{self.name} is a built-in world; choose another name")
        for kind, names, known in (
            ("method", self.methods or (), METHODS),
            ("scorer", self.scorers, TRAININGS),
        ):
            if unknown := sorted(set(names) - set(known)):
                raise ValueError(
                    f"no such {kind}: {', '.join(unknown)}; expected one of {', '.join(known)}"
                )
        return self


def load(spec: str) -> Task:
    """A task from a world's name, from gym:NAME or from a YAML file.

    Raises:
        TrimtabError: there is no such world, or the file is invalid; the message says why.
    """
    if spec in STEERS:
        path, reads = STEERS[spec]
        known = {"path": path, "family": "function", "reads": reads}
        return Task(spec, WORLDS[spec], {REWARD: known}, engine=REAL_ENGINE)
    if spec.startswith(gym.PREFIX):
        engine = {**REAL_ENGINE, "max_model_len": 2048}
        return Task(spec, gym.world(spec), methods=GYM, engine=engine)
    if spec in WORLDS:
        return Task(spec, _with_sum(WORLDS[spec]))
    return _own(spec, _config(spec))


def name(spec: str) -> str:
    """The name of a task's world, without loading the world.

    Raises:
        as `load`.
    """
    if spec.startswith(gym.PREFIX):
        return f"gym-{gym.split(spec)[0]}"
    return spec if spec in WORLDS else _config(spec).name


def _config(spec: str) -> Config:
    path = Path(spec)
    if path.suffix not in (".yaml", ".yml"):
        raise TrimtabError(
            f"there is no world {spec!r}; the worlds are {', '.join(WORLDS)}. For a generator of "
            "reasoning-gym, write gym:NAME; for your own model, name a YAML file."
        )
    try:
        return Config.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise TrimtabError(f"{path}: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise TrimtabError(f"{path}: {reasons.fields(error)}.") from None


def _with_sum(world: World) -> World:
    """The world with the reward of composed methods added, R = Σ_i w_i·R_i."""
    if world.name not in SUMS:
        return world
    parts = {world.rewards[name]: weight for name, weight in SUMS[world.name].items()}

    def composed(prompt: str, completion: str) -> float:
        return sum(weight * part(prompt, completion) for part, weight in parts.items())

    return replace(world, rewards={**world.rewards, COMPOSED: composed})


def _own(spec: str, config: Config) -> Task:
    world = own_world(
        config.name,
        config.base,
        config.prompts,
        config.rewards,
        config.max_tokens,
        gold=config.gold,
        supports=config.supports,
        bins=dict.fromkeys(config.rewards, config.bins),
    )
    return Task(
        spec, world, config.scorers, config.methods, {**ENGINE, **config.engine}, config.judge
    )


def own_world(
    name: str,
    base: str,
    prompts: Mapping[str, Path],
    specs: Mapping[str, str],
    max_tokens: int,
    **fields: Any,
) -> World:
    """A world of the user's own model, prompts and rewards.

    Args:
        name: of the world.
        base: directory or hub name.
        prompts: split → file of prompts.
        specs: specification of each reward, as for `trimtab rollout --reward`.
        max_tokens: maximum tokens of an answer.
        fields: gold, supports and bins of a World.

    Raises:
        TrimtabError, RewardError, OSError: a model, file or reward cannot be read or loaded.
    """
    try:
        base = bases.base_path(base)
        tokenizer = pretrained.tokenizer(base)
        longest = networks.longest(pretrained.configuration(base))
    except (OSError, ValueError) as error:
        raise TrimtabError(f"the base model {base} cannot be loaded: {error}") from None
    lines: dict[str, list[dict[str, Any]]] = defaultdict(list)
    texts: dict[str, list[str]] = {}
    for split, path in prompts.items():
        read_prompts = read(path, tokenizer)
        if longest is not None:
            check_lengths([(p.place, len(p.token_ids)) for p in read_prompts], max_tokens, longest)
        texts[split] = [tokenizer.decode(prompt.token_ids) for prompt in read_prompts]
        for text, prompt in zip(texts[split], read_prompts, strict=True):
            lines[text].append({**prompt.fields, "prompt": prompt.content})
        _warn(path, tokenizer, read_prompts, texts[split])
    fields_of = {text: shared(records) for text, records in lines.items()}

    def choose(split: str, n: int, seed: int) -> list[str]:
        chosen = list(dict.fromkeys(texts[split]))
        random.Random(seed).shuffle(chosen)
        return chosen[:n]

    return World(
        name=name,
        rewards={reward: _reward(spec, fields_of) for reward, spec in specs.items()},
        prompts=choose,
        max_tokens=max_tokens,
        base=Path(base),
        **fields,
    )


def _warn(
    path: Path, tokenizer: Any, prompts: Sequence[RolloutPrompt], texts: Sequence[str]
) -> None:
    """Log how many prompts are duplicates, and how many have other token ids than their text."""
    if duplicates := len(texts) - len(set(texts)):
        log.warning("%s: %d of %d prompts are duplicates; ignored.", path, duplicates, len(texts))
    encoded = tokenizer(list(texts), add_special_tokens=False).input_ids
    differing = sum(ids != prompt.token_ids for ids, prompt in zip(encoded, prompts, strict=True))
    if differing:
        log.warning(
            "%s: %d of %d prompts have token ids that differ from those of their text; the text "
            "is used.",
            path,
            differing,
            len(texts),
        )


def _reward(spec: str, fields: Mapping[str, Mapping[str, Any]]) -> Callable[[str, str], float]:
    """A reward by its specification, as a function of texts.

    It also gets the fields that all lines of the prompt share.
    """
    reward = rewards.load(spec)

    def one(prompt: str, completion: str) -> float:
        [value] = rewards.label(reward, [{**fields[prompt], "completion": completion}])
        return value

    return one
