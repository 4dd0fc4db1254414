"""vLLM's scheduler, with the rows of principles beside the requests that they steer.

Each request with principles gets one further request for each of them, its shadows: the same
request with the principle's tokens in its prompt. They begin with the same tokens for all requests
with that principle, so vLLM's prefix cache shares these. Shadows live and end with their request,
and no output of theirs leaves the engine.

All members of such a group must sample in the same steps. So a member waits before its last token
until all the others have only their last token left, too (`Member`); then all are put first in the
batch, where neither the token budget nor a lack of memory can part them. If one is preempted, the
others are preempted at the next step, and all come back together. The worker then sets the token of
every shadow to that of its request (shadows.py).

vLLM names this class by `--scheduler-cls`; it is not a public interface of vLLM.
"""

import copy
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from trimtab.xargs import BESIDE_KEY, GROUP_KEY, SHADOW_KEY

READY_TO_RUN = (RequestStatus.WAITING, RequestStatus.PREEMPTED)


class Member(Request):
    """A request of a group. While it waits, the scheduler does not see its last token."""

    waits = False

    @classmethod
    def of(cls, request: Request, max_tokens: int) -> "Member":
        """A request as a member of its own group, with so many tokens of an answer at most."""
        made = cls.__new__(cls)
        made.__dict__.update(vars(request))
        made.max_tokens = max_tokens
        made.sampling_params = params = copy.copy(request.sampling_params)
        assert params is not None
        params.max_tokens = max_tokens
        params.extra_args = {**(params.extra_args or {}), GROUP_KEY: request.request_id}
        return made

    @property
    def num_tokens(self) -> int:
        """Tokens that may be computed now."""
        return len(self._all_token_ids) - self.waits

    @property
    def num_tokens_with_spec(self) -> int:
        """The same: groups have no draft tokens."""
        return self.num_tokens

    @property
    def ready(self) -> bool:
        """Whether only its last token is left to compute."""
        left = len(self._all_token_ids) + self.num_output_placeholders - self.num_computed_tokens
        return self.status == RequestStatus.RUNNING and left == 1


@dataclass
class Group:
    """A request and its shadows."""

    members: list[Member]  # the request is the first
    preemptions: int = 0  # of all members, as far as they have been noted

    @property
    def running(self) -> list[Member]:
        """The members in the batch."""
        return [one for one in self.members if one.status == RequestStatus.RUNNING]

    @property
    def parted(self) -> bool:
        """Whether some members are in the batch, and others could be."""
        return bool(self.running) and any(one.status in READY_TO_RUN for one in self.members)


class PrincipleScheduler(Scheduler):
    """See above. It does what vLLM's does for requests without principles."""

    def __new__(cls, vllm_config: Any, *args: Any, **options: Any) -> "PrincipleScheduler":
        """The asynchronous one, if the engine schedules ahead."""
        ahead = vllm_config.scheduler_config.async_scheduling
        made: PrincipleScheduler = object.__new__(AsyncPrincipleScheduler if ahead else cls)
        return made

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.groups: dict[str, Group] = {}  # by the id of the request, the oldest first

    def add_request(self, request: Request) -> None:
        """Add a request, and its shadows right behind it."""
        extra = getattr(request.sampling_params, "extra_args", None) or {}
        beside = json.loads(extra.get(BESIDE_KEY, "[]"))
        prompt = request.prompt_token_ids or []
        prompts = [[*prompt[:at], *ids, *prompt[at:]] for at, ids in beside]
        room = self._room(prompts) if prompts and len(prompt) > 1 else 0
        if room < 1:  # without a group, the worker reports that the principles are missing
            super().add_request(request)
            return
        main = Member.of(request, min(request.max_tokens, room))
        shadows = [_shadow(main, i, prompt) for i, prompt in enumerate(prompts)]
        self.groups[main.request_id] = Group([main, *shadows])
        for member in (main, *shadows):
            super().add_request(member)

    def schedule(self, *args: Any, **options: Any) -> SchedulerOutput:
        """The next step."""
        if not self.groups:
            return super().schedule(*args, **options)
        self._rejoin()
        order = {one.request_id: place for place, one in enumerate(self.running)}
        self._release()
        output = super().schedule(*args, **options)
        self.running.sort(key=lambda one: order.get(one.request_id, len(order)))
        if output.total_num_scheduled_tokens == 0:
            self._part()
        return output

    def update_from_output(self, *args: Any, **options: Any) -> Any:
        """Take a step's tokens; shadows give no output, and end with their request."""
        hidden = {one.request_id for group in self.groups.values() for one in group.members[1:]}
        outputs = super().update_from_output(*args, **options)
        if not hidden:
            return outputs
        for of in outputs.values():
            of.outputs = [one for one in of.outputs if one.request_id not in hidden]
        for name in [name for name, group in self.groups.items() if self._over(group)]:
            self._end(name)
        return outputs

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        """End requests, and their shadows with them."""
        if isinstance(request_ids, str):
            request_ids = [request_ids]
        names = list(self.requests if request_ids is None else request_ids)
        groups = [self.groups.pop(name) for name in names if name in self.groups]
        shadows = [one.request_id for group in groups for one in group.members[1:]]
        ended = super().finish_requests(chain(names, shadows), finished_status)
        return [one for one in ended if one.request_id not in shadows]

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        for group in self.groups.values():
            for member in group.members:
                member.waits = False
        super()._update_after_schedule(scheduler_output)

    def _room(self, prompts: list[list[int]]) -> int:
        """Tokens of an answer for which every member of a group has room."""
        pool, kinds = self.kv_cache_manager.block_pool, len(self._managers)
        members = 1 + len(prompts)
        if members > self.max_num_active_reqs:
            return 0
        tokens = (pool.num_gpu_blocks - 1) // (members * kinds) * self.block_size
        return min(tokens, self.max_model_len) - max(map(len, prompts))

    @property
    def _managers(self) -> Any:
        return self.kv_cache_manager.coordinator.single_type_managers

    def _release(self) -> None:
        """Let the groups sample that can do so in this step, and put them first in the batch."""
        pool, taken = self.kv_cache_manager.block_pool, 0
        released: set[str] = set()
        for group in self.groups.values():
            names = {one.request_id for one in group.members}
            fits = len(released) + len(names) <= self.max_num_scheduled_tokens
            go = fits and all(one.ready for one in group.members)
            if go:
                need = sum(map(self._new_blocks, group.members))
                while taken + need > pool.get_num_free_blocks():
                    if not self._preempt_last(released | names):
                        break
                go = taken + need <= pool.get_num_free_blocks()
            if go:
                taken += need
                released |= names
            for member in group.members:
                member.waits = not go
        self.running.sort(key=lambda one: one.request_id not in released)

    def _new_blocks(self, member: Member) -> int:
        """Blocks that its next token needs."""
        at = member.num_computed_tokens
        return sum(at % manager.block_size == 0 for manager in self._managers)

    def _preempt_last(self, keep: set[str]) -> bool:
        """Preempt the last of the batch, but none of some; whether there was one."""
        last = next((r for r in reversed(self.running) if r.request_id not in keep), None)
        if last is not None:
            self._preempt(last)
        return last is not None

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._preempt_request(request, time.monotonic())

    def _rejoin(self) -> None:
        """Preempt the other members of groups of which one was preempted; they return together."""
        for group in self.groups.values():
            if sum(one.num_preemptions for one in group.members) > group.preemptions:
                self._preempt_group(group)

    def _preempt_group(self, group: Group) -> None:
        for member in group.running:
            self._preempt(member)
        group.preemptions = sum(one.num_preemptions for one in group.members)
        waiting = [one for one in group.members if one.status in READY_TO_RUN]
        self.waiting.remove_requests(waiting)
        for member in reversed(waiting):
            self.waiting.prepend_request(member)

    def _part(self) -> None:
        """If nothing can run because parted groups hold the memory, take it from the last one."""
        parted = [name for name, group in self.groups.items() if group.parted]
        idle = self.pause_state != PauseState.UNPAUSED
        if idle or not parted or any(one.num_in_flight_tokens for one in self.running):
            return
        group = self.groups[parted[-1]]
        if len(group.running) < len(self.running):
            self._preempt_group(group)
        else:  # it does not fit at all: the worker reports that its principles are missing
            self._end(parted[-1])

    def _over(self, group: Group) -> bool:
        """Whether one of a group has ended."""
        return any(one.request_id not in self.requests for one in group.members)

    def _end(self, name: str) -> None:
        """End the shadows of a request, which goes on alone if it has not ended."""
        group = self.groups.pop(name)
        group.members[0].waits = False
        shadows = [one.request_id for one in group.members[1:]]
        super().finish_requests(shadows, RequestStatus.FINISHED_ABORTED)


class AsyncPrincipleScheduler(PrincipleScheduler, AsyncScheduler):
    """The same for an engine that schedules a step before it knows the last one's tokens."""


def _shadow(request: Request, number: int, prompt: list[int]) -> Member:
    """A request like another one, for the row of a principle.

    It keeps what bans or favours tokens, so that these are the same in both rows, and what ends the
    answer. It has no grammar: the request's own is enough.
    """
    params = copy.copy(request.sampling_params)
    assert params is not None
    params.extra_args = {GROUP_KEY: request.request_id, SHADOW_KEY: number}
    params.seed = params.structured_outputs = None
    params.logprobs = params.prompt_logprobs = None
    params.logprob_token_ids = params.prompt_logprob_token_ids = None
    params.skip_reading_prefix_cache = False
    return Member(
        request_id=f"{request.request_id}-principle-{number}",
        client_index=request.client_index,
        prompt_token_ids=prompt,
        sampling_params=params,
        pooling_params=None,
        arrival_time=request.arrival_time,
        lora_request=request.lora_request,
        cache_salt=request.cache_salt,
        priority=request.priority,
        block_hasher=request._block_hasher,
    )
