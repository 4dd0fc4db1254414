"""gym:NAME: a generator of reasoning-gym as a world; its code scores the answers.

trimtab arena gym:leg_counting                    its questions to SmolLM2
trimtab arena gym:leg_counting@Qwen/Qwen3-0.6B    to another base: a directory or hub name
"""

import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError
from trimtab_lab.worlds.real import TRAINING
from trimtab_lab.worlds.world import World
from trimtab_models import bases, pretrained, smollm2

PREFIX = "gym:"
ASK = "Give the final answer in <answer></answer>."
MAX_TOKENS = 256
_TEST_EVERY = 4
"""A question is for the test if its CRC-32 is a multiple of this, so the splits are disjoint."""


def split(spec: str) -> tuple[str, str]:
    """The generator and the base of a specification, gym:NAME or gym:NAME@BASE."""
    name, _, base = spec.removeprefix(PREFIX).partition("@")
    return name, base or smollm2.NAME


def world(spec: str) -> World:
    """The world of a specification.

    Raises:
        TrimtabError: reasoning-gym is missing, has no such generator, or the base has no template.
        OSError, ValueError: the base cannot be loaded.
    """
    name, base = split(spec)
    _generator(name, 1, 0)
    entries: dict[str, tuple[Any, Any]] = {}

    def prompts(which: str, n: int, seed: int) -> list[str]:
        items = _generator(name, 64 * n, seed * 10**7)  # question i is made with seed + i
        chat = _template(base)
        chosen: dict[str, tuple[Any, Any]] = {}
        for item in items:
            question = item["question"].strip()
            is_test = zlib.crc32(question.encode()) % _TEST_EVERY == 0
            if is_test == (which == "test"):
                chosen.setdefault(chat(question), (items, item))
            if len(chosen) == n:
                break
        entries.update(chosen)
        return list(chosen)

    def score(prompt: str, answer: str) -> float:
        items, item = entries[prompt]
        return max(0.0, min(1.0, float(items.score_answer(answer=final(answer), entry=item))))

    return World(
        name=f"gym-{name}",
        gold="score",
        rewards={"score": score},
        supports={"score": (0.0, 1.0)},
        bins={"score": 25},
        prompts=prompts,
        max_tokens=MAX_TOKENS,
        base=lambda: Path(bases.base_path(base)),
        real=True,
        training=TRAINING,
    )


def final(answer: str) -> str:
    """What an answer has between its last <answer> and </answer>; without them, all of it."""
    _, begun, last = answer.rpartition("<answer>")
    return last.partition("</answer>")[0].strip() if begun else answer.strip()


def _generator(name: str, size: int, seed: int) -> Any:
    try:
        import reasoning_gym
    except ImportError:
        raise TrimtabError(
            f"{PREFIX}{name} needs the package reasoning-gym; pip install 'trimtab[gym]'."
        ) from None
    try:
        return reasoning_gym.create_dataset(name, size=size, seed=seed)
    except ValueError:
        known = ", ".join(sorted(reasoning_gym.factory.DATASETS))
        raise TrimtabError(
            f"reasoning-gym has no generator {name!r}; expected one of {known}."
        ) from None


@cache
def _template(base: str) -> Callable[[str], str]:
    """A function that renders a question by the base's chat template."""
    tokenizer = pretrained.tokenizer(bases.base_path(base))
    if not tokenizer.chat_template:
        raise TrimtabError(f"{base} has no chat template; bring a base that was tuned to answer.")
    render = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    return lambda question: render([{"role": "user", "content": f"{question}\n{ASK}"}])
