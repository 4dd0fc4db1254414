"""The texts of Model Runner V2's requests, whose tokens lie on the device.

A text is copied whole once, when its request is new. At each later step, one copy has the last
tokens of all requests (`recent`), and they extend the texts that are known (`text`).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.scoring.pool import Ids
from trimtab_models.transfers import to_host


@dataclass
class Request:
    """A request in a step: it has one row of logits, and one more for each draft token."""

    index: int  # its first row of logits
    slot: int
    length: int  # its tokens in the slot; draft tokens are not among them
    recent: Ids  # the last of them
    drafted: list[int] = field(default_factory=list)


def recent(tokens: Tensor, slots: Tensor, lengths: Tensor, most: int) -> Tensor:
    """The last tokens of some texts, [texts, 1 + most], on the device; nothing waits for it.

    Args:
        tokens: [slots, length] of all requests.
        slots, lengths: of each text, [texts] int64, on the device.
        most: tokens that a step may add to a text, at least 1. One more, which is known, is
            compared.
    """
    places = lengths[:, None] - 1 - most + torch.arange(1 + most, device=tokens.device)
    return tokens[slots[:, None], places.clamp(0, tokens.shape[1] - 1)]


def with_drafts(tokens: Tensor, ctx: Any, most: int) -> list[Request]:
    """All requests of a step with draft tokens, whose rows the device alone knows.

    One wait. Draft tokens below 0 are placeholders, which vLLM never accepts.
    tokens, most: see `recent`. ctx: vLLM's LogitsContext.
    """
    slots, positions = ctx.expanded_idx_mapping.long(), ctx.pos.long()
    layout = torch.stack((slots, ctx.expanded_local_pos, positions, ctx.input_ids), 1)
    layout, last = to_host([layout, recent(tokens, slots, positions + 1, most)])
    requests: list[Request] = []
    rows = zip(layout.tolist(), last.numpy().astype(np.int64), strict=True)
    for index, ((slot, offset, position, token), ids) in enumerate(rows):
        if offset == 0:
            requests.append(Request(index, slot, position + 1, ids))
        elif token >= 0:
            requests[-1].drafted.append(token)
    return requests


def text(tokens: Tensor, request: Request, known: Ids) -> Ids:
    """The tokens of a request, int64.

    Waits for the device if the request is new, or if its known text is not the start of its text.

    Args:
        tokens: [slots, length] of all requests, on the device.
        request: the request.
        known: its text as of its last step, empty if it is new.
    """
    length, last = request.length, request.recent
    if not _continues(known, length, last):
        return whole(tokens, request.slot, length)
    return np.concatenate((known, last[len(last) - (length - len(known)) :]))


def whole(tokens: Tensor, slot: int, length: int) -> Ids:
    """The tokens of one request."""
    return tokens[slot, :length].cpu().numpy().astype(np.int64)


def _continues(known: Ids, length: int, last: Ids) -> bool:
    """Whether a text of this length, which ends with `last`, continues a known text."""
    common = len(known) - (length - len(last))  # tokens at the end of `known` and in `last`
    return (
        len(last) <= length
        and 0 < common <= min(len(last), len(known))
        and bool((known[-common:] == last[:common]).all())
    )
