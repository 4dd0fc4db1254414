"""The size of the base's K/V cache on a CPU, chosen from the memory that is free.

vLLM takes 92 % of all memory by default and does not start where that much is not free. Here the
cache has room for `max_num_seqs` sequences of `max_model_len` tokens, but at most half of what the
weights leave, and at least one sequence. On a GPU vLLM's own rule stays.
"""

import logging
import math
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM
from vllm.config import CacheConfig
from vllm.platforms import current_platform

from trimtab.errors import StartError
from trimtab.memory import available

log = logging.getLogger(__name__)

SETTING = "VLLM_CPU_KVCACHE_SPACE"
RESERVE = 2**30
"""Bytes for code, activations and scorers."""
GIB = 2**30


def fit(config: Any) -> str | None:
    """Set the size of the K/V cache in vLLM's configuration.

    Returns what was chosen, as a line for the user; None on a GPU, or if the user has chosen with
    VLLM_CPU_KVCACHE_SPACE, --kv-cache-memory-bytes or --gpu-memory-utilization.

    Raises:
        StartError: the memory does not suffice for one sequence, or for what the user has chosen;
            vLLM 0.32 would write a long traceback and then wait for ever.
    """
    if not current_platform.is_cpu():
        return None
    cache, free = config.cache_config, available()
    if (wanted := _requested(cache)) is not None:
        if wanted > free:
            raise StartError(
                f"{free / GIB:.1f} GiB of memory are free, not the requested "
                f"{wanted / GIB:.1f} GiB; lower {SETTING}, --kv-cache-memory-bytes or "
                "--gpu-memory-utilization, or leave it out."
            )
        return None
    tokens, rows = config.model_config.max_model_len, config.scheduler_config.max_num_seqs
    used = weights(config)
    size = choose(free - used - RESERVE, tokens * token_bytes(config), rows)
    if size is None:
        raise StartError(
            f"not enough memory for the base: {free / GIB:.1f} GiB are free, and it needs "
            f"{(used + RESERVE) / GIB:.1f} GiB and {tokens * token_bytes(config) / GIB:.1f} GiB "
            f"of K/V for one request of {tokens} tokens; lower --max-model-len, or free memory."
        )
    cache.kv_cache_memory_bytes = size
    return (
        f"{size / GIB:.1f} GiB for the K/V cache ({free / GIB:.1f} GiB are free); set {SETTING} "
        "to other GiB to change it."
    )


def _requested(cache: Any) -> int | None:
    """The bytes that the user has chosen, as vLLM reads the settings; None if there are none."""
    if cache.kv_cache_memory_bytes is not None:  # also from VLLM_CPU_KVCACHE_SPACE
        return int(cache.kv_cache_memory_bytes)
    if cache.gpu_memory_utilization != CacheConfig().gpu_memory_utilization:
        return int(psutil.virtual_memory().total * cache.gpu_memory_utilization)
    return None


def choose(room: int, sequence: int, rows: int) -> int | None:
    """Bytes of the cache; None if one sequence does not fit.

    Args:
        room: free bytes that the weights leave.
        sequence: bytes of a sequence of maximum length.
        rows: sequences at a time.
    """
    if sequence > room:
        return None
    return max(sequence, min(rows * sequence, room // 2))


def token_bytes(config: Any) -> int:
    """Bytes of a token's keys and values in all layers of this process."""
    model, parallel = config.model_config, config.parallel_config
    name = config.cache_config.cache_dtype
    width = 1 if name.startswith("fp8") else model.dtype.itemsize
    heads = model.get_num_kv_heads(parallel) * model.get_head_size()
    return int(2 * model.get_num_layers(parallel) * heads * width)


def weights(config: Any) -> int:
    """Bytes of the base's weights in this process; 0 for a network that transformers has not."""
    model = config.model_config
    try:
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(
                model.hf_text_config, trust_remote_code=False
            )
    except Exception:  # of any kind: vLLM has networks of its own
        log.debug("the size of the base is not known", exc_info=True)
        return 0
    split = config.parallel_config.tensor_parallel_size
    return math.ceil(network.num_parameters() * model.dtype.itemsize / split)
