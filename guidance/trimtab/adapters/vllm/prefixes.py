"""The texts of Model Runner V2's requests, whose tokens lie on the device.

A text is copied whole once, when its request is new. At each later step, one copy has the last
tokens of all requests, and they extend the texts that are known.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trimtab.scoring.pool import Ids
from trimtab_models.transfers import upload


def extended(tokens: Tensor, requests: Sequence[tuple[int, int, Ids]], most: int) -> list[Ids]:
    """The tokens of each request, int64.

    One wait for the device, and one for each request that is new, or whose known text is not the
    start of its text.

    Args:
        tokens: [slots, length] of all requests, on the device.
        requests: slot, number of tokens, and the text as of its last step, empty if it is new.
        most: tokens that a step may add to a text, at least 1.
    """
    width = most + 1  # with one token that is known, for comparison
    ends = torch.tensor([[slot, length] for slot, length, _ in requests])
    slots, lengths = upload(ends, tokens.device).unbind(1)
    places = (lengths[:, None] - width + torch.arange(width, device=tokens.device)).clamp(min=0)
    recent = tokens[slots[:, None], places].cpu().numpy().astype(np.int64)  # [requests, width]
    return [
        _extended(known, length, last)
        if _continues(known, length, last)
        else whole(tokens, slot, length)
        for (slot, length, known), last in zip(requests, recent, strict=True)
    ]


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


def _extended(known: Ids, length: int, last: Ids) -> Ids:
    return np.concatenate((known, last[len(last) - (length - len(known)) :]))
