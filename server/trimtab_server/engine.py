"""vLLM's engine, started with Trimtab's processor in it."""

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM

from trimtab_server.errors import StartError
from trimtab_server.settings import Settings

try:  # vLLM 0.33 moved it
    from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args
except ImportError:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args

PROCESSOR = "trimtab.adapters.vllm:GuidanceProcessor"
WORKER = "trimtab.adapters.worker.GuidanceWorker"


def parse(settings: Settings, flags: Sequence[str]) -> argparse.Namespace:
    """vLLM's arguments: the given flags, and what Trimtab needs.

    Raises:
        StartError: a flag is one that Trimtab sets itself.
    """
    parser = make_arg_parser(FlexibleArgumentParser(prog="trimtab serve MODEL"))
    args = parser.parse_args(["--model", settings.model, *flags])
    if args.worker_extension_cls:
        raise StartError("--worker-extension-cls is set by trimtab itself; leave it out.")
    args.logits_processors = [*(args.logits_processors or []), PROCESSOR]
    args.worker_extension_cls = WORKER
    args.additional_config = {**_mapping(args.additional_config), "trimtab": guidance(settings)}
    args.enable_request_id_headers = True
    args.api_key = None  # ours guards more than vLLM's (auth.py)
    validate_parsed_serve_args(args)
    return args


def guidance(settings: Settings) -> dict[str, Any]:
    """The `trimtab` part of vLLM's additional configuration (trimtab.config.GuidanceConfig)."""
    return {
        "scorers": settings.scorer,
        "default_scorers": settings.default_scorer or None,
        "cache_bytes": settings.cache_bytes,
    }


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def start(args: argparse.Namespace) -> Any:
    """The running engine."""
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
    if current_platform.is_cpu():
        # The engine's process inherits what is imported here; a device would not survive a fork.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    return AsyncLLM.from_vllm_config(config, disable_log_stats=args.disable_log_stats)
