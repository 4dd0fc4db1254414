"""Ranks of one engine: the leader scores, the others apply its result.

A scorer may fail, or round differently, on one rank; tokens must not differ between ranks. So only
the leader has scorers (the first rank of tensor parallelism, on the last stage of pipeline
parallelism, where logits are). After each step it sends the fused logits of the guided rows.
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


def on_leader(work: Callable[..., T], *args: Any) -> T:
    """Run work on the leader alone, without advancing the generator that all ranks share."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        return work(*args)


def share(logits: Tensor, rows: Sequence[int]) -> None:
    """Copy the leader's guided rows to all ranks, in place; logits: [batch, vocab] float32."""
    if not rows:
        return
    index = torch.tensor(rows, device=logits.device)
    fused = logits[index]  # [rows, vocab]
    get_tp_group().broadcast(fused, src=0)
    logits[index] = fused


def first_answer(answers: Sequence[Any]) -> Any:
    """The leader's answer to a call of all ranks; the others answer None."""
    return next((answer for answer in answers if answer is not None), None)
