"""Start vLLM's engine with Trimtab's processor."""

import argparse
import os
from collections.abc import Mapping, Sequence
from tempfile import NamedTemporaryFile
from typing import Any

import typer
import yaml
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM

from trimtab import memory, orphans
from trimtab.adapters.vllm import beside, kv_cache, pools, unsupported
from trimtab.adapters.vllm.options import PROCESSOR, WORKER, chunked_prefill, logprobs_limit
from trimtab.errors import StartError
from trimtab.reasons import brief, collect_reason
from trimtab_server import tracing
from trimtab_server.http import HEAD_BYTES
from trimtab_server.settings import Settings
from trimtab_server.shutdown import unsignalled
from trimtab_server.vllm import flags as flags_of_vllm
from trimtab_server.vllm.records import Recording

try:  # vLLM 0.33 moved it
    from vllm.entrypoints.common.cli_args import validate_parsed_serve_args
except ImportError:
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args


class RecordingLLM(Recording, AsyncLLM):
    """vLLM's engine client; fetches records for guided calls."""


def parse(
    settings: Settings, flags: Sequence[str], defaults: Sequence[str] = ()
) -> argparse.Namespace:
    """vLLM's arguments: `defaults`, overridden by the `vllm` setting, overridden by `flags`.

    Raises:
        StartError: there is no such flag, Trimtab sets it itself, or it has a setting of its own.
        TrimtabError: guidance does not support a flag.
    """
    parser = flags_of_vllm.parser()
    parser.set_defaults(h11_max_incomplete_event_size=HEAD_BYTES)
    if settings.log_level in ("warning", "error"):
        parser.set_defaults(use_tqdm_on_load=False)
    options = [*defaults, *_flags(parser, settings.vllm), *flags]
    args = parser.parse_args(["--model", settings.model, *options])
    unsupported.check_options(vars(args))
    if args.worker_extension_cls:
        raise StartError("--worker-extension-cls is set by trimtab itself; leave it out.")
    if args.api_key or os.environ.get("VLLM_API_KEY"):
        # vLLM's own keys would guard only some of its routes, and none of ours.
        raise StartError(
            "vLLM's api-key and VLLM_API_KEY are not read here; set --api-key or TRIMTAB_API_KEY."
        )
    if settings.allowed_origins:
        args.allowed_origins = settings.allowed_origins
    args.logits_processors = [*(args.logits_processors or []), PROCESSOR]
    args.worker_extension_cls = WORKER
    args.additional_config = {**_mapping(args.additional_config), "trimtab": settings.guidance()}
    if settings.otlp_traces_endpoint is not None:
        args.otlp_traces_endpoint = settings.otlp_traces_endpoint
    args.scheduler_cls = args.scheduler_cls or beside.SCHEDULER
    args.max_logprobs = logprobs_limit(args.max_logprobs)
    args.enable_request_id_headers = True
    validate_parsed_serve_args(args)
    return args


def _flags(parser: FlexibleArgumentParser, options: Mapping[str, Any]) -> list[str]:
    """The `vllm` setting as flags, parsed by vLLM as its YAML configuration."""
    with NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump({name.replace("_", "-"): value for name, value in options.items()}, file)
        file.flush()
        return list(parser.load_config_file(file.name))


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def start(args: argparse.Namespace) -> Any:
    """The running engine.

    Raises:
        StartError: vLLM refuses the flags or the model, or its process did not start (it has
            then written the reason to stderr).
        TrimtabError: guidance does not support this engine.
    """
    if args.otlp_traces_endpoint is not None:
        tracing.switch_on()
    args.enable_chunked_prefill = chunked_prefill(args.enable_chunked_prefill)
    try:
        config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
    except (OSError, ValueError) as error:
        raise StartError(f"vLLM refuses to begin: {brief(error)}") from None
    unsupported.check_config(config)
    beside.serve(config)
    if (chosen := kv_cache.fit(config)) is not None:
        typer.echo(f"trimtab: {chosen}", err=True)
    config.additional_config["trimtab"]["cache_bytes"], short = pools.choose(config)
    if short is not None:
        typer.echo(f"trimtab: {short}", err=True)
    if current_platform.is_cpu():
        # vLLM has just set "spawn", for devices. On a CPU a fork is safe, and saves the engine's
        # processes their imports (10 s).
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
        memory.bound()
    with orphans.owned(), unsignalled(), collect_reason() as reason:
        try:
            return RecordingLLM.from_vllm_config(config, disable_log_stats=args.disable_log_stats)
        except RuntimeError as error:
            raise StartError(reason() or f"the engine did not start ({brief(error)}).") from None
