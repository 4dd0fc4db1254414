"""The size of the scorers' prefix pools in a vLLM engine, if the user has not chosen it.

On a CPU the memory is known, once the base's K/V cache has its size. On a GPU, vLLM takes what
--gpu-memory-utilization says while it loads, so the pools have their least size.
"""

import logging
from typing import Any

from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext

from trimtab import memory, pool_size
from trimtab.adapters.vllm import kv_cache
from trimtab.config import GuidanceConfig
from trimtab.loading import precision

log = logging.getLogger(__name__)


def choose(config: Any) -> tuple[int, str | None]:
    """The bytes of all pools, and a line for the user if they are too small for all requests.

    config: vLLM's. Where the size of its K/V cache is not known, the pools have their least size.

    Raises:
        ScorerLoadError: a scorer's checkpoint cannot be read.
    """
    guidance, room = GuidanceConfig.parse(config.additional_config), 0
    cpu, cache = current_platform.is_cpu(), config.cache_config.kv_cache_memory_bytes
    if guidance.cache_bytes is None and cpu and cache is not None:
        room = memory.available() - cache - kv_cache.weights(config) - kv_cache.RESERVE
    return pool_size.fit(
        guidance,
        rows=config.scheduler_config.max_num_seqs,
        length=config.model_config.max_model_len,
        room=room // config.parallel_config.data_parallel_size,
        dtype=precision(guidance, "cpu" if cpu else "cuda", config.model_config.dtype),
    )


def fit_options(model: str, options: dict[str, Any]) -> None:
    """Set the sizes of the K/V cache and of the pools in the options of an offline engine.

    Raises:
        StartError: as kv_cache.fit.
    """
    if not current_platform.is_cpu():
        return
    config = EngineArgs(model=model, **options).create_engine_config(UsageContext.LLM_CLASS)
    if (chosen := kv_cache.fit(config)) is not None:
        log.info("%s", chosen)
        options["kv_cache_memory_bytes"] = config.cache_config.kv_cache_memory_bytes
    section = (options.get("additional_config") or {}).get("trimtab")
    if section is not None:
        section["cache_bytes"], short = choose(config)
        if short is not None:
            log.warning("%s", short)
