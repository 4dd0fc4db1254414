"""function: a Python function of the prompt and the completion, as plain text."""

import importlib
import inspect
import sys
from collections.abc import Sequence
from typing import Any

from trimtab_models.rewards.base import Record, RewardError, texts


class FunctionReward:
    """f(prompt, completion) -> float, or f(prompt, completion, record) with a third parameter.

    The record contains every field of the prompt's line, such as a reference answer. The module
    may be in the working directory.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        module, _, name = spec.partition(":")
        if "" not in sys.path:
            sys.path.insert(0, "")
        try:
            self.function: Any = getattr(importlib.import_module(module), name)
        except Exception as error:
            raise RewardError(
                f"the reward {spec} cannot be imported ({type(error).__name__}: {error}); "
                "expected module:function."
            ) from error
        if not callable(self.function):
            raise RewardError(
                f"the reward {spec} is a {type(self.function).__name__}; expected a "
                "function of (prompt, completion)."
            )
        self.reads_record = len(inspect.signature(self.function).parameters) > 2

    def __call__(self, records: Sequence[Record]) -> list[float]:
        """See trimtab_models.rewards."""
        return [self._one(record) for record in records]

    def _one(self, record: Record) -> float:
        arguments = (*texts(record), *((record,) if self.reads_record else ()))
        try:
            value: float = self.function(*arguments)
        except Exception as error:
            raise RewardError(
                f"the reward {self.spec} raised {type(error).__name__}: {error}"
            ) from error
        return value
