"""The base's own states of a prefix, which probes read.

h_t   the state that the base computes its logits from, at the prefix x + y^{1:t}
m_t   the mean of h_0 … h_t: over the answer so far, from the prompt's last token on
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import finalize, ref

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.scoring.pool import Ids


class HiddenStates:
    """The latest input of the module that computes a base's logits, by a forward pre-hook.

    It has one row for each row of logits: the engine needs no other forward.
    """

    def __init__(self, module: nn.Module, argument: int = 0) -> None:
        """argument: position of the states among the module's arguments."""
        self.latest: Tensor | None = None
        this = ref(self)  # the module must not keep what nobody uses any more

        def keep(_: nn.Module, arguments: Any) -> None:
            if (hidden := this()) is not None:
                hidden.latest = arguments[argument]

        finalize(self, module.register_forward_pre_hook(keep).remove)

    def of(self, rows: int) -> Tensor | None:
        """The states behind `rows` rows of logits, [rows, hidden]; None if there are none."""
        states = self.latest
        if states is not None and states.dim() == 3:  # [rows, length, hidden]
            states = states[:, -1]
        return states if states is not None and len(states) == rows else None


@dataclass(frozen=True, eq=False)
class StateBatch:
    """States of the rows of one step; NaN in rows whose earlier states are lost."""

    last: Tensor  # [rows, hidden] float32, h_t
    totals: Tensor  # [rows, hidden] float32, h_0 + … + h_t
    counts: Tensor  # [rows, 1] float32, t + 1

    @cached_property
    def states(self) -> Tensor:
        """h_t and m_t, [rows, 2, hidden] float32."""
        return torch.stack((self.last, self.totals / self.counts), 1)

    def one(self, index: int) -> "StateBatch":
        """A copy of one row."""
        at = slice(index, index + 1)
        return StateBatch(self.last[at].clone(), self.totals[at].clone(), self.counts[at].clone())


@dataclass(eq=False)
class RowState:
    """The states of one row: row `index` of a batch, at one prefix."""

    batch: StateBatch
    index: int
    prefix: Ids
    start: int  # tokens of the prompt, with which the mean begins
    former: "RowState | None" = None
    """One token earlier: an engine may be a step ahead of what it has reported.

    With draft tokens the earlier ones are shared by the rows after them."""

    def at(self, prefix: Ids, start: int) -> "RowState | None":
        """The states at a prefix, if they are known."""
        alike = start == self.start and len(prefix) == len(self.prefix)
        if alike and (prefix is self.prefix or np.array_equal(prefix, self.prefix)):
            return self
        return None if self.former is None else self.former.at(prefix, start)

    def cut(self, former: int) -> None:
        """Keep only some of the former states."""
        state: RowState | None = self
        for _ in range(former):
            state = state.former if state is not None else None
        if state is not None:
            state.former = None
