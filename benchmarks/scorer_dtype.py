"""A scorer in bfloat16 beside the same in float32, on one thread of a CPU.

    python benchmarks/scorer_dtype.py

A head of six layers (the sizes of SmolLM2's, random weights) scores k candidates of each row, after
prefixes of 200 tokens that grow step by step. Both take each step in turn. Writes
benchmarks/results/scorer_dtype.md.
"""

import platform
import time
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from transformers import LlamaConfig

from trimtab.scorers import HeadScorer
from trimtab.scoring.backbone import Backbone
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.networks import scalar_head

RESULTS = Path(__file__).parent / "results"
VOCAB, LENGTH, STEPS, WARM = 8192, 200, 24, 4
CASES = ((1, 10), (8, 10), (8, 16), (32, 16))  # rows, k
CONFIG = {
    "vocab_size": VOCAB,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}


def scorer(dtype: torch.dtype) -> HeadScorer:
    torch.manual_seed(0)
    network = scalar_head(LlamaConfig(**CONFIG)).to(dtype)
    backbone = Backbone(network, max_length=512, pool_bytes=2**28, max_candidates=32)
    return HeadScorer(ScorerInfo(), backbone)


@torch.inference_mode()
def measure(rows: int, k: int) -> str:
    """A row of the table."""
    rng = np.random.default_rng(0)
    pair = [scorer(torch.float32), scorer(torch.bfloat16)]
    prefixes = [rng.integers(VOCAB, size=LENGTH) for _ in range(rows)]
    seconds, differences = np.zeros((STEPS, 2)), []
    for step in range(STEPS):
        candidates = [rng.integers(VOCAB, size=k) for _ in range(rows)]
        scores = []
        for i, one in enumerate(pair):
            start = time.perf_counter()
            scores.append(one.score(range(rows), prefixes, candidates, [1.0] * rows).float())
            seconds[step, i] = time.perf_counter() - start
        differences.append(float((scores[0] - scores[1]).square().mean().sqrt() / scores[0].std()))
        prefixes = [np.append(p, c[0]) for p, c in zip(prefixes, candidates, strict=True)]
    exact, rounded = np.median(seconds[WARM:], 0) * 1e3
    ratios = seconds[WARM:, 1] / seconds[WARM:, 0]
    ratio = f"{ratios.mean():.2f} ± {stats.sem(ratios):.2f}"
    return f"| {rows} | {k} | {exact:.1f} | {rounded:.1f} | {ratio} | {np.mean(differences):.3f} |"


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        f"A head of six layers on one thread of {platform.machine()}, torch {torch.__version__}, "
        f"prefixes of {LENGTH} tokens, seed 0: medians of {STEPS - WARM} steps, and the mean ratio "
        "± standard error. *Difference*: root mean square, in deviations of the scores.",
        "",
        "| rows | k | float32, ms | bfloat16, ms | ratio | difference |",
        "|---" * 6 + "|",
        *(measure(rows, k) for rows, k in CASES),
    ]
    text = "\n".join(lines) + "\n"
    (RESULTS / "scorer_dtype.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
