"""Engines that guidance cannot serve: those where a row of logits is not a request's next token.

The processor edits row b for the request in slot b, and the first rank edits for all. Speculative
decoding and diffusion give a request several rows, and sharded sampling gives each rank other
requests: guidance would edit the rows of other requests.
"""

from collections.abc import Mapping
from typing import Any

from trimtab.errors import TrimtabError

FLAGS = {
    "speculative_config": "--speculative-config",
    "spec_method": "--spec-method",
    "spec_model": "--spec-model",
    "spec_tokens": "--spec-tokens",
    "enable_batch_sharded_sampling": "--enable-batch-sharded-sampling",
}
"""vLLM's options that create such an engine, and their flags."""


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse vLLM's engine options before anything is loaded.

    Raises:
        TrimtabError: one of them is in FLAGS.
    """
    for name, flag in FLAGS.items():
        if options.get(name):
            raise _unfit(flag)


def check_config(config: Any) -> None:
    """Refuse an engine by its VllmConfig.

    Raises:
        TrimtabError: a row of logits is not a request's next token.
    """
    if config.parallel_config.enable_batch_sharded_sampling:
        raise _unfit("--enable-batch-sharded-sampling")
    if config.speculative_config is not None:
        raise _unfit("--speculative-config")
    if config.num_speculative_tokens > 0:
        raise TrimtabError(
            "guidance cannot steer a diffusion model, which generates several tokens of a request "
            "at once; serve one that generates one token at a time."
        )


def _unfit(flag: str) -> TrimtabError:
    return TrimtabError(
        f"guidance does not work with {flag}: a row of logits would not be a request's next token, "
        f"and other requests would be edited. Leave {flag} out."
    )
