"""A black-box base: a model behind an OpenAI-compatible endpoint, steered token by token."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trimtab.adapters.openai.config import UpstreamConfig
from trimtab.config import GuidanceConfig

if TYPE_CHECKING:
    import httpx

    from trimtab.adapters.openai.engine import UpstreamEngine
    from trimtab.engine import Record

__all__ = ["UpstreamConfig", "load_engine"]

UNBOUNDED = 2**20
"""Maximum tokens of a prefix without a tokenizer; the scorer's own window applies."""


def load_engine(
    config: UpstreamConfig,
    guidance: GuidanceConfig,
    *,
    transport: "httpx.AsyncBaseTransport | None" = None,
    on_call: Callable[[str], Any] = lambda outcome: None,
    on_record: "Callable[[Record | None], Any]" = lambda record: None,
) -> "UpstreamEngine":
    """An engine (trimtab.engine.Engine) over an upstream, steered by the scorers of `guidance`.

    transport: replaces the network.
    on_call: called after each call to the upstream with its outcome: ok, limited, failed, refused,
        timeout, connection or unusable.
    on_record: called with the record of each guided choice that ended; None if it was lost.

    Raises:
        StartError: the tokenizer cannot be loaded, or a scorer needs one.
        ScorerLoadError: a scorer cannot be loaded.
    """
    import torch

    from trimtab.adapters.openai.client import Client
    from trimtab.adapters.openai.engine import UpstreamEngine
    from trimtab.adapters.openai.token_ids import ById
    from trimtab.adapters.openai.token_texts import ByText
    from trimtab.errors import StartError
    from trimtab.guide import Guide
    from trimtab.loading import load_scorers, precision

    naming = ById(config) if config.tokenizer else ByText(config)
    scorers = load_scorers(
        guidance,
        max_length=int(naming.length) if naming.closed else UNBOUNDED,
        vocab_size=naming.columns if naming.closed else 1,
        tokenizer=naming.decoder,
        dtype=precision(guidance, "cpu", torch.float32),
    )
    for name, scorer in scorers.items():
        if not naming.closed and scorer.reads == "tokens":
            raise StartError(
                f"scorer '{name}' reads token ids of its base, which are not known without a "
                "tokenizer; give --tokenizer, or a scorer that reads text: family=text, a network "
                "with a tokenizer of its own, or family=function with reads=text, answer, pair or "
                "chat."
            )
    guide = Guide(scorers, guidance.scorer_timeout)
    return UpstreamEngine(config, guide, naming, Client(config, transport, on_call), on_record)
