"""Grades from 1 to 10 of each answer, and conversations of two turns (the protocol of MT-Bench).

A method answers a prompt, then a second one after its own first answer. Each answer is graded
alone, with all that stands before it. The grader is a language model behind an OpenAI-compatible
endpoint, `judge:http://HOST/v1,model=NAME`, or `EXACT`: the world's gold reward on the same scale,

    grade = 1 + 9·(R − lowest)/(highest − lowest)

which is no language model, and is named so wherever its grades are.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trimtab_lab.arena.frontier import Floats
from trimtab_lab.arena.method import Method
from trimtab_models import rewards
from trimtab_models.rewards.judge import JudgeReward

if TYPE_CHECKING:
    from trimtab_lab.arena.bench import Bench
    from trimtab_lab.worlds import World

EXACT = "exact"
LOWEST, HIGHEST = 1, 10
TEMPLATE = """You grade an answer of an assistant. Below is the conversation before it, and the \
answer.

Conversation:
{prompt}

Answer:
{completion}

Grade the last answer alone: is it helpful, relevant, correct, deep and detailed enough? Reply \
with one number from 1 (very bad) to 10 (excellent) and nothing else."""


@dataclass(frozen=True)
class Turn:
    """The same turn of all conversations: what stands before each answer, and the answers."""

    prompts: Sequence[str]
    answers: Sequence[str]


def converse(bench: "Bench", method: Method, scaled_beta: float) -> list[Turn]:
    """Two turns of a method with each test prompt: the second prompt is the next one's.

    The base must know conversations: see the world *tools*, some of whose documents have two turns.
    """
    firsts = [one for [one] in bench.texts_of(method, scaled_beta, 1)]
    end = bench.tokenizer.eos_token
    nexts = [*bench.texts[1:], bench.texts[0]]
    seconds = [
        f"{prompt}{answer}{end}{following}"
        for prompt, answer, following in zip(bench.texts, firsts, nexts, strict=True)
    ]
    later = copy.copy(bench)  # with the same engine
    later.texts = seconds
    later.prompts = [later.tokenizer(text, add_special_tokens=False).input_ids for text in seconds]
    answers = [one for [one] in later.texts_of(method, scaled_beta, 1)]
    return [Turn(bench.texts, firsts), Turn(seconds, answers)]


def grades(spec: str, turn: Turn, world: "World") -> Floats:
    """The grade of each answer of a turn, 1 to 10: [prompts].

    Args:
        spec: `EXACT`, or a judge.
        turn: prompts and answers.
        world: for `EXACT`.

    Raises:
        RewardError: the specification is neither, the judge fails on all retries, or it replies
            another number.
    """
    pairs = list(zip(turn.prompts, turn.answers, strict=True))
    if spec == EXACT:
        low, high = world.supports[world.gold]
        gold = np.array([world.rewards[world.gold](*pair) for pair in pairs])
        return np.asarray(LOWEST + (HIGHEST - LOWEST) * (gold - low) / (high - low))
    judge = rewards.load(spec)
    if not isinstance(judge, JudgeReward):
        raise rewards.RewardError("a grader must be exact, or judge:http(s)://HOST/v1,model=NAME.")
    judge.template = TEMPLATE
    records = [{"prompt": prompt, "completion": answer} for prompt, answer in pairs]
    replies = rewards.label(judge, records)
    if wrong := [reply for reply in replies if not LOWEST <= reply <= HIGHEST]:
        raise rewards.RewardError(
            f"the judge replied {wrong[0]:g}; expected a grade from {LOWEST} to {HIGHEST}."
        )
    return np.asarray(replies, dtype=float)
