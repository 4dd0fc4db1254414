"""Ranks of one engine: the leader scores, the others apply its result.

A scorer may fail, or round differently, on one rank; tokens must not differ between ranks. So only
the leader has scorers (the first rank of tensor parallelism, on the last stage of pipeline
parallelism, where logits are). After each step it sends what it did to the guided rows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from vllm.distributed import get_pp_group, get_tp_group
from vllm.distributed.parallel_state import model_parallel_is_initialized

from trimtab.fusion import Fused

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


def share(logits: Tensor, ks: Mapping[int, Any], done: Sequence[Fused] | None) -> None:
    """Do on all ranks what the leader did to guided rows, in place.

    All ranks have the same logits before, [batch, vocab] float32, so the leader sends the shift of
    each row and the logits of its candidates: 2·k + 1 numbers a row. Rows with k = "all" are sent
    whole.

    ks: row → k, of guided rows. done: what the leader did; None on the other ranks.
    """
    group = get_tp_group()
    whole = [row for row, k in ks.items() if k == "all"]
    if whole:
        index = torch.tensor(whole, device=logits.device)
        fused = logits[index]  # [rows, vocab]
        group.broadcast(fused, src=0)
        logits[index] = fused
    some = {row: k for row, k in ks.items() if k != "all"}
    if not some:
        return
    width = min(max(some.values()), logits.shape[1])
    index = torch.tensor(list(some), device=logits.device)
    sent = torch.zeros(len(some), 1 + 2 * width, device=logits.device)  # shift, tokens, logits
    if done is not None:
        pack(sent, logits, list(some), done)
    group.broadcast(sent, src=0)
    if done is None:
        shift, tokens, values = sent[:, :1], sent[:, 1 : 1 + width].long(), sent[:, 1 + width :]
        logits[index] += shift
        logits[index[:, None], tokens] = values


def pack(sent: Tensor, logits: Tensor, rows: Sequence[int], done: Sequence[Fused]) -> None:
    """Write what was done to some rows, in place: shift, tokens and their logits of each.

    Tokens are exact in float32 up to 2²⁴. Rows to which nothing was done keep their first token.
    sent: [rows, 1 + 2·width]. logits: [batch, vocab].
    """
    width = sent.shape[1] // 2
    sent[:, 1 + width :] = logits[torch.tensor(rows, device=logits.device), :1]
    places = {row: place for place, row in enumerate(rows)}
    for one in done:
        own = [r for r, row in enumerate(one.index) if row in places]
        at = torch.tensor([places[one.index[r]] for r in own], device=logits.device)
        tokens, values = (_widened(part[own], width) for part in (one.tokens, one.logits))
        sent[at] = torch.cat((one.shift[own][:, None], tokens.float(), values), 1)


def _widened(values: Tensor, width: int) -> Tensor:
    """[rows, k] → [rows, width], with the first column repeated."""
    return torch.cat((values, values[:, :1].expand(-1, width - values.shape[1])), 1)


def first_answer(answers: Sequence[Any]) -> Any:
    """The leader's answer to a call of all ranks; the others answer None."""
    return next((answer for answer in answers if answer is not None), None)
