"""One step: from the revealed tokens to base logits, and from fused logits to a token."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trimtab.adapters.openai.positions import Position
from trimtab.engine import Sampling

GREEDY = 1e-5
"""Temperatures below this are greedy, as in vLLM."""
FILLERS = 2**18
"""Maximum columns over which the unrevealed mass is spread."""
BELOW = 1e-5
"""Minimum difference in nats between the least likely revealed token and a filler."""


def spread(position: Position, columns: int, closed: bool) -> Tensor:
    """Base logits of a step, [1, columns or more] float32.

    Revealed tokens have their log-probabilities. The remaining mass is spread evenly over all other
    columns, so that Σ π0 = 1 and the KL is correct. If the vocabulary is unknown (not closed),
    enough columns are appended that each is less likely than any revealed token.
    """
    tokens = list(position.logprobs)
    values = torch.tensor(list(position.logprobs.values()), dtype=torch.float64)
    left, least = position.unrevealed, float(values.min())
    if not closed:
        needed = left / values.min().exp()
        columns = max(columns, len(tokens) + min(int(needed) + 1, FILLERS))
    fillers = max(columns - len(tokens), 1)
    each = min(float(torch.tensor(left / fillers).log()), least - BELOW)
    logits = torch.full((1, columns), each)
    logits[0, tokens] = values.float()
    return logits


class TokenSampler:
    """Samples one answer's tokens: temperature, min_p, top_k, top_p, in vLLM's order."""

    def __init__(self, sampling: Sampling, index: int) -> None:
        self.greedy = sampling.temperature < GREEDY
        self.generator = torch.Generator()
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed((sampling.seed + index) % 2**63)
        self.warpers = LogitsProcessorList()
        if not self.greedy:
            self.warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.min_p > 0:
                self.warpers.append(MinPLogitsWarper(sampling.min_p))
            if sampling.top_k > 0:
                self.warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self.warpers.append(TopPLogitsWarper(sampling.top_p))

    def sample(self, tokens: Sequence[int], logits: Tensor) -> int:
        """Sample one of `tokens` by its fused logits, [tokens] float32."""
        if self.greedy:
            return tokens[int(logits.argmax())]
        warped = self.warpers(torch.empty(1, 0, dtype=torch.long), logits[None])  # [1, tokens]
        index = torch.multinomial(warped.softmax(-1), 1, generator=self.generator)
        return tokens[int(index)]
