"""Rewards: a number for each completion, from a Python function, a classifier or a judge.

    module:function                          a Python function (function.py)
    classifier:PATH_OR_NAME[,key=value...]   a transformers sequence classifier (classifier.py)
    judge:URL[,key=value...]                 an OpenAI-compatible endpoint (judge.py)

A reward takes records, each with a "prompt" and a "completion" (text or chat messages, as in TRL),
and returns one finite float for each.
"""

import inspect
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from trimtab_models.data.faults import json_type, word
from trimtab_models.data.numbers import FLOAT32
from trimtab_models.rewards.base import Record, RewardError
from trimtab_models.rewards.classifier import ClassifierReward
from trimtab_models.rewards.function import FunctionReward
from trimtab_models.rewards.judge import JudgeReward

__all__ = ["Reward", "RewardError", "label", "load"]

Reward = Callable[[Sequence[Record]], list[float]]

_KINDS: dict[str, Callable[..., Reward]] = {"classifier": ClassifierReward, "judge": JudgeReward}


def load(spec: str) -> Reward:
    """The reward that a specification names, loaded.

    Raises:
        RewardError: the form is not one of the above, an option is unknown, or loading fails.
    """
    head, *rest = spec.split(",")
    pairs = [option.partition("=") for option in rest]
    kind, colon, target = head.partition(":")
    if not (kind and colon and target and all(key and sep for key, sep, _ in pairs)):
        raise RewardError(
            f"the reward {spec[:200]!r} must be module:function, classifier:PATH[,key=value...] "
            "or judge:URL[,key=value...]; for example classifier:./reward-model,label=positive."
        )
    options = {key: value for key, _, value in pairs}
    if kind in _KINDS:
        _, *known = inspect.signature(_KINDS[kind]).parameters
        if unknown := sorted(set(options) - set(known)):
            raise RewardError(
                f"{kind} has no option {', '.join(unknown)}; its options are {', '.join(known)}."
            )
        return _KINDS[kind](target, **options)
    if options:
        raise RewardError(f"a reward function has no options; leave out {', '.join(options)}.")
    return FunctionReward(head)


def label(reward: Reward, records: Sequence[Record]) -> list[float]:
    """The records' rewards, checked: one number for each record, finite in float32.

    Raises:
        RewardError: they are not, or the reward failed.
    """
    rewards: Any = reward(records)
    if isinstance(rewards, str | bytes | dict) or not hasattr(rewards, "__len__"):
        raise RewardError(f"the reward returned {json_type(rewards)}; expected a list of numbers.")
    if len(rewards) != len(records):
        raise RewardError(
            f"the reward returned {len(rewards)} numbers for {len(records)} completions."
        )
    return [_number(value) for value in rewards]


def _number(value: Any) -> float:
    if getattr(value, "ndim", None) == 0:  # a scalar of torch or numpy
        value = value.item()
    if not isinstance(value, Real):
        raise RewardError(f"the reward returned {json_type(value)}; expected a number.")
    if not abs(value) <= FLOAT32:  # type: ignore[operator]  # also true for NaN
        raise RewardError(f"the reward returned {word(value, 20)}; expected a finite number.")
    return float(value)
