"""Networks with random weights, for benchmarks: their time does not depend on what they learned."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trimtab_models import checkpoint, probe
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.networks import scalar_head

VOCAB, KV_HEADS = 8192, 2
BASE = {"hidden_size": 1280, "intermediate_size": 3456, "num_hidden_layers": 24}
"""438 million parameters."""
SMALL_BASE = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 12}
"""42 million parameters."""
SCORER = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6}
"""21 million parameters."""
TINY = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
PROBES, BINS = [f"probe{i}" for i in range(8)], 11


def config(sizes: dict[str, int], vocab: int = VOCAB, positions: int = 512) -> LlamaConfig:
    """A Llama with heads of 64 dimensions, four per K/V head."""
    heads = sizes["hidden_size"] // 64
    return LlamaConfig(
        vocab_size=vocab,
        num_attention_heads=heads,
        num_key_value_heads=heads // 4,
        max_position_embeddings=positions,
        **sizes,
    )


def base_of(root: Path, sizes: dict[str, int], **options: Any) -> Path:
    """A base in a directory; options: of `config`."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config(sizes, **options))
    print(f"a base of {model.num_parameters() / 1e6:.0f} million parameters", flush=True)
    model.save_pretrained(root)
    return root


def scorers_of(
    root: Path, names: list[str], sizes: dict[str, int], **options: Any
) -> dict[str, Path]:
    """Scorers that are networks; options: of `config`."""
    return {
        name: checkpoint.save(
            scalar_head(config(sizes, **options)), None, ScorerInfo(), root / name
        )
        for name in names
    }


def probes_of(base: Path, root: Path) -> dict[str, Path]:
    """Eight probes of a base, each with a histogram of 11 returns."""
    paths = {}
    for name in PROBES:
        network = probe.new(base, outputs=BINS)
        for part in (network.level, network.factors):
            torch.nn.init.normal_(part.weight, std=0.1)
        info = ScorerInfo(family="probe", support=(0.0, 1.0))
        paths[name] = checkpoint.save(network, None, info, root / name)
    return paths


def scorer_network() -> torch.nn.Module:
    """The scorer of 21 million parameters, for long prefixes; the same in every call."""
    torch.manual_seed(0)
    return scalar_head(config(SCORER, positions=16384))
