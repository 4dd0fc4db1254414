"""The worker's side of principles: which row of a step is beside which, and what it samples.

The scheduler (scheduler.py) runs a request and the shadows of its principles in the same steps.
Here each request learns the rows of its shadows, and after sampling each shadow gets its token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from trimtab.xargs import GROUP_KEY, SHADOW_KEY
from trimtab_models.transfers import upload


@dataclass
class Shadow:
    """A shadow in the batch."""

    group: str  # the request that it is beside
    number: int  # of the principle, from 0


@dataclass
class Shadows:
    """The shadows of a batch, and the requests with principles, by their places in it.

    A place is a batch index (V1) or a request slot (V2).
    """

    of: dict[int, Shadow] = field(default_factory=dict)
    mains: dict[int, str] = field(default_factory=dict)  # place → group
    copies: tuple[list[int], list[int]] = ([], [])  # rows of this step: shadows, their requests

    def enter(self, place: int, extra: Mapping[str, Any]) -> bool:
        """Note a request at its place; whether it is a shadow."""
        self.leave(place)
        group, number = extra.get(GROUP_KEY), extra.get(SHADOW_KEY)
        if group is not None and number is not None:
            self.of[place] = Shadow(group, int(number))
        elif group is not None:
            self.mains[place] = group
        return place in self.of

    def leave(self, place: int) -> None:
        """Forget the request at a place."""
        self.of.pop(place, None)
        self.mains.pop(place, None)

    def move(self, source: int, target: int, *, swap: bool) -> None:
        """V1: a request moves to another place, whose own request leaves or is swapped."""
        for kept in (self.of, self.mains):
            move(kept, source, target, swap=swap)

    def meet(self, sampling: Mapping[int, tuple[int, int]]) -> dict[int, tuple[int, ...]]:
        """The rows of each request's shadows in a step, by the request's place.

        Only of requests all of whose shadows sample at the same token of the answer.

        sampling: place → row of logits, and tokens of the answer so far; of requests that sample.
        """
        self.copies = [], []
        if not self.mains:
            return {}
        beside: dict[str, dict[int, tuple[int, int]]] = {}
        for place, shadow in self.of.items():
            if place in sampling:
                beside.setdefault(shadow.group, {})[shadow.number] = sampling[place]
        met: dict[int, tuple[int, ...]] = {}
        for place, group in self.mains.items():
            if place not in sampling:
                continue
            row, length = sampling[place]
            others = beside.get(group, {})
            rows = [others[number][0] for number in sorted(others)]
            self.copies[0].extend(rows)
            self.copies[1].extend([row] * len(rows))
            if all(own == length for _, own in others.values()):
                met[place] = tuple(rows)
        return met

    def copy(self, sampled: Tensor) -> None:
        """Give each shadow its request's token, in place: [rows] or [rows, 1]."""
        if self.copies[0]:
            to, of = upload(torch.tensor(self.copies), sampled.device)
            sampled[to] = sampled[of]
            self.copies = [], []

    def watch(self, sampler: Any) -> None:
        """Copy the tokens after each call of a runner's sampler."""
        if isinstance(sampler, torch.nn.Module):  # V1
            sampler.register_forward_hook(lambda _, __, out: self.copy(out.sampled_token_ids))
            return
        sample = sampler.sample

        @wraps(sample)
        def sample_and_copy(*args: Any, **options: Any) -> Any:
            sampled, logits = sample(*args, **options)
            self.copy(sampled)
            return sampled, logits

        sampler.sample = sample_and_copy


def move(kept: dict[int, Any], source: int, target: int, *, swap: bool) -> Any:
    """Move a value from one place to another; what this overwrites, if it is not swapped."""
    moving, other = kept.pop(source, None), kept.pop(target, None)
    if moving is not None:
        kept[target] = moving
    if other is not None and swap:
        kept[source] = other
        return None
    return other


class Seeds:
    """Seeded requests on a CPU whose prompt is computed in parts.

    vLLM 0.32 draws for such a row, throws the token away and rewinds the request's random
    generator, which no CPU generator can do. So the generator is taken away for that step.
    """

    def __init__(self) -> None:
        self.taken: list[str] = []  # ids of their requests

    def take(self, runner: Any, loading: Sequence[bool]) -> None:
        """Give the generators back, and take those of rows that load; V1."""
        batch = runner.input_batch
        for name in self.taken:
            index, state = batch.req_id_to_index.get(name), runner.requests.get(name)
            if index is not None and state is not None and state.generator is not None:
                batch.generators[index] = state.generator
        self.taken = []
        for index in [index for index in batch.generators if loading[index]]:
            del batch.generators[index]
            self.taken.append(batch.req_ids[index])
