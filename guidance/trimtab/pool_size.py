"""The size of the scorers' prefix pools, from the requests that an engine may have at a time.

Each pool holds the K/V of what all rows have read. All pools are equally large, so the one whose
tokens need most bytes decides:

    wanted = pools · rows · length · bytes of a token's K/V

A pool that is too small costs no scores but time: what does not fit is read again at each step.
"""

import logging

import torch

from trimtab.config import CACHE_BYTES, GuidanceConfig
from trimtab.loading import pool_networks
from trimtab_models import peft, pretrained
from trimtab_models.networks import kv_shape

log = logging.getLogger(__name__)

MIB = 2**20
SHARE = 4
"""Chosen pools take at most this part of the memory that is left: a quarter."""


def fit(
    config: GuidanceConfig, *, rows: int, length: int, room: int, dtype: torch.dtype
) -> tuple[int, str | None]:
    """The bytes of all prefix pools together, and a line for the user if they are not enough.

    Args:
        config: its cache_bytes stay, if they are set.
        rows: requests at a time.
        length: longest prefix, in tokens.
        room: bytes of memory that are left for everything else.
        dtype: of the scorers.

    Raises:
        ScorerLoadError: a scorer's checkpoint cannot be read.
    """
    tokens = [token_bytes(path, dtype) for path in pool_networks(config)]
    wanted = len(tokens) * rows * length * max(tokens, default=0)
    size = config.cache_bytes or choose(wanted, room)
    if size >= wanted:
        return size, None
    held = size // (len(tokens) * max(tokens))
    return size, (
        f"the scorers' prefix caches have {size // MIB} MiB; {rows} requests of {length} tokens "
        f"need {wanted // MIB} MiB. All requests together may have {held} tokens before "
        "prefixes are read again at each step, which is slower. Set cache_bytes (--cache-bytes) to "
        "more, or lower --max-num-seqs or --max-model-len."
    )


def choose(wanted: int, room: int) -> int:
    """What is wanted, within a share of the memory, but at least CACHE_BYTES."""
    return max(CACHE_BYTES, min(wanted, room // SHARE))


def token_bytes(source: str, dtype: torch.dtype) -> int:
    """Bytes of a token's keys and values in all layers of a network; 0 if they are not known."""
    try:
        network = peft.base(source) if peft.is_adapter(source) else source
        layers, kv_heads, head_dim = kv_shape(pretrained.configuration(network))
    except Exception:  # of any kind: a family of the user's own may keep anything there
        log.debug("the size of a scorer's prefix cache is not known", exc_info=True)
        return 0
    return 2 * layers * kv_heads * head_dim * dtype.itemsize
