"""Whether prefix-shared scoring of a network is exact: checks when it is loaded."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trimtab.errors import ScorerLoadError
from trimtab.scoring.attention import NAME as PREFIX_ATTENTION
from trimtab.scoring.pool import Ids
from trimtab_models.networks import split


def check_config(network: PreTrainedModel, max_length: int) -> None:
    """Refuse kinds of attention that depend on more than queries, keys and positions.

    Raises:
        ScorerLoadError: the network has one, or fewer positions than `max_length`.
    """
    config = network.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    reason = None
    if getattr(config, "alibi", False):
        reason = "it uses ALiBi, which adds a bias that prefix-shared attention does not have"
    elif getattr(config, "attn_logit_softcapping", None):
        reason = "its attention logits are soft-capped"
    elif rope.get("rope_type") in ("dynamic", "longrope"):
        reason = f"its rotary embedding ('{rope['rope_type']}') changes with the sequence's length"
    elif _learned_positions(network) and max_length > config.max_position_embeddings:
        reason = (
            f"it has {config.max_position_embeddings} learned positions and the server serves "
            f"{max_length}; lower --max-model-len"
        )
    if reason:
        raise ScorerLoadError(f"this {config.model_type} network cannot be served: {reason}.")


def _learned_positions(network: PreTrainedModel) -> bool:
    inputs = network.get_input_embeddings()
    return any(isinstance(m, nn.Embedding) and m is not inputs for m in network.modules())


def check_scores(
    model: PreTrainedModel, hidden: Callable[[Sequence[Ids], Sequence[Ids]], Tensor]
) -> None:
    """Compare once with plain re-forwarding, so that no unknown backbone gives wrong scores.

    Args:
        model: the network with its head; prefix-shared attention is switched on.
        hidden: last hidden states of every prefix's candidates, with prefix-shared attention.

    Raises:
        ScorerLoadError: they differ, or the network does not run this way.
    """
    network, _ = split(model)
    ids = _ids(network)
    prefixes, candidates = [ids[:7], ids[:18]], [ids[20:23], ids[18:20]]
    own = network.config._attn_implementation
    try:
        check_head(model)
        sequences = [
            np.append(prefix, candidate)
            for prefix, group in zip(prefixes, candidates, strict=True)
            for candidate in group
        ]
        expected = torch.cat([_plain(network, network, s)[0][:, -1] for s in sequences])
        network.set_attn_implementation(PREFIX_ATTENTION)
        actual = hidden(prefixes, candidates)
    except ScorerLoadError:
        raise
    except Exception as error:
        network.set_attn_implementation(own)
        raise ScorerLoadError(
            f"this {network.config.model_type} network does not run through transformers' "
            f"attention registry as prefix-shared scoring needs ({type(error).__name__}); "
            "use a Llama, Qwen2, Qwen3, Mistral, Gemma, GPT-2, GPT-NeoX, Phi or OPT backbone."
        ) from error
    if not _close(actual, expected):
        raise ScorerLoadError(
            f"this {network.config.model_type} network cannot be served: prefix-shared scoring "
            "differs from plain forwarding, so its attention depends on more than queries, keys "
            "and positions."
        )


def check_head(model: PreTrainedModel) -> None:
    """Check that a model's output is its head of its network's last hidden state.

    Raises:
        ScorerLoadError: it is more than that.
    """
    network, head = split(model)
    ids = _ids(network)[:8]
    state, full = _plain(network, network, ids)[0][:, -1], _plain(network, model, ids).logits
    with torch.inference_mode():
        output = head(state)[0]
    # A sequence classifier returns only the last token's output, other models every token's.
    if not _close(output, full.reshape(-1, len(output))[-1]):
        raise ScorerLoadError(
            f"this {network.config.model_type} network cannot be served: its output is more than "
            "its head of the last hidden state."
        )


def _ids(network: PreTrainedModel) -> Ids:
    """Some tokens, always the same."""
    vocab = network.get_input_embeddings().num_embeddings
    ids: Ids = torch.randint(vocab, (24,), generator=torch.Generator().manual_seed(0)).numpy()
    return ids


@torch.inference_mode()
def _plain(network: PreTrainedModel, model: PreTrainedModel, ids: Ids) -> Any:
    """A model's output for some tokens, with transformers' own attention in its network."""
    own = network.config._attn_implementation
    try:
        network.set_attn_implementation("eager")
        return model(torch.from_numpy(ids)[None].to(model.device), use_cache=False)
    finally:
        network.set_attn_implementation(own)


def _close(actual: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-3 if expected.dtype == torch.float32 else 0.1
    return torch.allclose(actual, expected, rtol=tolerance, atol=tolerance)
