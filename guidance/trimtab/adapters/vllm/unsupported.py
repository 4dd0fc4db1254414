"""Engines that guidance cannot serve: those whose rows of logits it cannot tell apart.

With sharded sampling each rank has other requests, but the first rank guides for all. Of diffusion,
and of speculative decoding by the V1 runner, the processor does not get which row of logits belongs
to which token of a request: guidance would edit the rows of other requests. Model Runner V2 tells
it, so there guidance works with draft tokens (drafts.py).
"""

from collections.abc import Mapping
from typing import Any

from trimtab.errors import TrimtabError

FLAGS = {"enable_batch_sharded_sampling": "--enable-batch-sharded-sampling"}
"""vLLM's options that create such an engine, and their flags."""
METHODS = ("ngram", "ngram_gpu", "draft_model")
"""Methods of speculative decoding whose draft tokens are known one after another."""


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse vLLM's engine options before anything is loaded.

    Raises:
        TrimtabError: one of them is in FLAGS.
    """
    for name, flag in FLAGS.items():
        if options.get(name):
            raise _sharded(flag)


def check_config(config: Any) -> None:
    """Refuse an engine by its VllmConfig.

    Raises:
        TrimtabError: guidance could not tell its rows of logits apart, or its answers would not
            follow the guided distribution.
    """
    if config.parallel_config.enable_batch_sharded_sampling:
        raise _sharded(FLAGS["enable_batch_sharded_sampling"])
    if config.speculative_config is not None:
        _check_speculation(config.speculative_config, config.use_v2_model_runner)
    elif config.num_speculative_tokens > 0:
        raise TrimtabError(
            "guidance cannot steer a diffusion model, which generates several tokens of a request "
            "at once; serve one that generates one token at a time."
        )


def _check_speculation(speculation: Any, v2: bool) -> None:
    if not v2:
        raise TrimtabError(
            "guidance works with speculative decoding on vLLM's Model Runner V2 only; this engine "
            "uses V1, whose rows of logits would be edited for other requests. Leave "
            "--speculative-config out, or set VLLM_USE_V2_MODEL_RUNNER=1 on a GPU."
        )
    if speculation.method not in METHODS:
        raise TrimtabError(
            f"guidance works with speculative decoding by {', '.join(METHODS)}, not by "
            f"'{speculation.method}'. Choose one of them, or leave --speculative-config out."
        )
    if speculation.parallel_drafting:
        raise TrimtabError(
            "guidance does not work with parallel_drafting, where a draft token is not known when "
            "the next one is drafted. Set it to false in --speculative-config."
        )
    if speculation.rejection_sample_method == "synthetic":
        raise TrimtabError(
            "guidance does not work with rejection_sample_method 'synthetic', which accepts draft "
            "tokens at fixed rates, so that answers would not follow the guided distribution. Set "
            "it to 'standard' in --speculative-config."
        )


def _sharded(flag: str) -> TrimtabError:
    return TrimtabError(
        f"guidance does not work with {flag}: each rank would sample other requests, and guidance "
        f"would edit the wrong ones. Leave {flag} out."
    )
