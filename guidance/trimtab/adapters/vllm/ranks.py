"""Ranks of one engine: the first scores, the others apply what it decided.

A scorer may fail, or round otherwise, on one rank alone; tokens must not differ between ranks. So
only the leader has scorers (the first rank of tensor parallelism, on the last stage of pipeline
parallelism, where logits are), and after each step it sends the guided rows as they then are.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from vllm.distributed import get_pp_group, get_tp_group
from vllm.distributed.parallel_state import model_parallel_is_initialized

T = TypeVar("T")


def leads() -> bool:
    """Whether this rank has the scorers."""
    if not model_parallel_is_initialized():
        return True
    return get_pp_group().is_last_rank and get_tp_group().is_first_rank


def several() -> bool:
    """Whether other ranks have the same logits."""
    return model_parallel_is_initialized() and get_tp_group().world_size > 1


def alone(work: Callable[..., T], *given: Any) -> T:
    """Do what the other ranks do not do, without drawing from the generator that all share."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        return work(*given)


def share(logits: Tensor, rows: Sequence[int]) -> None:
    """Make the guided rows of a step, [batch, vocab] float32, those of the leader, in place."""
    if not rows:
        return
    index = torch.tensor(rows, device=logits.device)
    fused = logits[index]  # [rows, vocab]
    get_tp_group().broadcast(fused, src=0)
    logits[index] = fused


def first_answer(answers: Sequence[Any]) -> Any:
    """What the leader answered to a call of all ranks; the others answer None."""
    return next((answer for answer in answers if answer is not None), None)
