"""Guidance on an engine of your own: all it must do is to hand its logits to `Guide.step`.

The engine here is a table of random bigram logits that decodes a batch of sequences.
"""

import numpy as np
import torch

from trimtab import GuidanceParams, Guide, Row, load_scorers
from trimtab.config import GuidanceConfig

VOCABULARY, STOP, LENGTH = 50, 0, 12


def even(ids: list[int]) -> float:
    """The scorer: a function of the token ids so far; it likes even tokens."""
    return float(ids[-1] % 2 == 0)


def decode(
    table: torch.Tensor, prompts: list[list[int]], guide: Guide, beta: float
) -> list[list[int]]:
    """Sample a continuation of each prompt under guidance."""
    params = GuidanceParams(beta=beta, k=20).resolve(guide.registry.scorers)
    # A row holds what guidance knows of a sequence; it lives as long as the sequence does.
    rows = [Row(params, len(prompt), stop_token=STOP) for prompt in prompts]
    texts = [list(prompt) for prompt in prompts]
    for _ in range(LENGTH):
        logits = table[torch.tensor([text[-1] for text in texts])].clone()  # [rows, vocab]
        for row, text in zip(rows, texts, strict=True):
            row.prefix = np.array(text, dtype=np.int64)
        guide.step(logits, list(enumerate(rows)))  # writes logits + β·Σ wᵢ·sᵢ, in place
        for text, token in zip(texts, torch.multinomial(logits.softmax(-1), 1)[:, 0], strict=True):
            text.append(int(token))
    return texts


if __name__ == "__main__":
    torch.manual_seed(0)
    spec = {"path": "own_engine:even", "family": "function"}
    config = GuidanceConfig.parse({"trimtab": {"scorers": {"even": spec}}})
    guide = Guide(load_scorers(config, max_length=64, vocab_size=VOCABULARY))
    table = torch.randn(VOCABULARY, VOCABULARY)
    for beta in (0.0, 2.0, -2.0):
        tokens = [t for text in decode(table, [[1], [2], [3], [4]], guide, beta) for t in text[1:]]
        share = sum(token % 2 == 0 for token in tokens) / len(tokens)
        print(f"beta {beta:+.0f}: {share:.0%} of the tokens are even")
