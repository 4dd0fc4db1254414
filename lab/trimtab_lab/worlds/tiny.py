"""tiny: a world so small that every completion, its probability and its reward are known exactly.

Four tokens (0 ends), completions of at most four tokens, two prompts, a random Llama as the base.
Tests can compare what a scorer learns here with its exact limit. Exact quantities are float64 sums
over completions; nothing is estimated.

    world = Tiny()
    exact = world.table(world.value)     # [states] V^π0 of every prefix
    world.probabilities @ world.rewards  # the base's reward, summed over both prompts
"""

import copy
import math
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from trimtab_models.rows import Pair, Ranked, Rollout, pad

EOS = 0
LETTERS = (1, 2, 3)
VOCABULARY = 4
LENGTH = 4
PROMPTS = ((1, 2), (3,))

Prefix = tuple[int, ...]
TinyState = tuple[Prefix, Prefix]
"""A prompt and a prefix of its completion."""


def config(**sizes: int) -> LlamaConfig:
    """A very small Llama over this vocabulary."""
    standard = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaConfig(
        vocab_size=VOCABULARY,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=EOS,
        **{**standard, **sizes},
    )


def ended(prefix: Prefix) -> bool:
    """Whether a prefix is a whole completion."""
    return len(prefix) == LENGTH or EOS in prefix


def reward(prompt: Prefix, completion: Prefix) -> float:
    """tanh(0.6·s·(steps up − steps down) + 0.5 if it ended with EOS, else − 0.2).

    s is −1 if the completion starts with 3, else 1. A step compares neighbours, starting with the
    prompt's last token; so the contribution of a token depends on the tokens before it.
    """
    path = (prompt[-1], *(token for token in completion if token != EOS))
    steps = sum((b > a) - (b < a) for a, b in pairwise(path))
    sign = -1 if path[1:2] == (3,) else 1
    return math.tanh(0.6 * sign * steps + (0.5 if EOS in completion else -0.2))


def step_reward(prompt: Prefix, prefix: Prefix) -> float:
    """The reward of the last token of a prefix in `Tiny.stepwise`: by the two tokens at its end."""
    before, last = (*prompt, *prefix)[-2:]
    return 0.35 * ((last + before) % 3 - 1) + 0.1 * (len(prefix) - 2)


class Tiny:
    """The tiny world; `seed` chooses the base."""

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.base = LlamaForCausalLM(config()).double().eval()
        self.base.lm_head.weight.data *= 8  # away from uniform
        endings = [
            (*body, *end)
            for n in range(LENGTH + 1)
            for body in product(LETTERS, repeat=n)
            for end in ([(EOS,)] if n < LENGTH else [()])
        ]
        self.finals: list[TinyState] = [(prompt, y) for prompt in PROMPTS for y in endings]
        self.rollouts = [Rollout([*x], [*y], reward(x, y)) for x, y in self.finals]
        self.rows = pad(self.rollouts, EOS)
        self.rewards = torch.tensor([reward(*final) for final in self.finals], dtype=torch.float64)
        with torch.inference_mode():
            logits = self.base(self.rows.input_ids).logits
        self.log_pi0 = logits.log_softmax(-1).clone()  # [finals, length, vocab] float64
        # P(y | x): the product of its tokens' probabilities. [finals]
        self.probabilities = (self.rows.chosen(self.log_pi0) * self.rows.mask()).sum(1).exp()
        known = {(x, y[:t]) for x, y in self.finals for t in range(len(y) + 1)}
        self.states: list[TinyState] = sorted(known)

    def stepwise(self) -> "Tiny":
        """The same world with a further reward for every token; rewards are then whole returns."""
        world = copy.copy(self)
        steps = [[step_reward(x, y[: t + 1]) for t in range(len(y))] for x, y in self.finals]
        pairs = zip(self.rollouts, steps, strict=True)
        world.rollouts = [a._replace(label=a.label + sum(r), step_rewards=r) for a, r in pairs]
        world.rows = pad(world.rollouts, EOS)
        world.rewards = self.rewards + torch.tensor([sum(r) for r in steps], dtype=torch.float64)
        return world

    # Exact quantities of one prefix.

    @cached_property
    def _under(self) -> dict[TinyState, list[int]]:
        under: dict[TinyState, list[int]] = {state: [] for state in self.states}
        for i, (x, y) in enumerate(self.finals):
            for t in range(len(y) + 1):
                under[x, y[:t]].append(i)
        return under

    def reach(self, prompt: Prefix, prefix: Prefix) -> float:
        """P(prefix | prompt) under the base; 1 for the empty prefix."""
        return float(self.probabilities[self._under[prompt, prefix]].sum())

    def returns(self, prompt: Prefix, prefix: Prefix) -> tuple[Tensor, Tensor]:
        """The distribution of the return after a prefix: (rewards [n], probabilities [n])."""
        under = self._under[prompt, prefix]
        weights = self.probabilities[under]
        return self.rewards[under], weights / weights.sum()

    def value(self, prompt: Prefix, prefix: Prefix) -> float:
        """V^π0(x, prefix) = E R."""
        rewards, weights = self.returns(prompt, prefix)
        return float(weights @ rewards)

    def soft_value(self, prompt: Prefix, prefix: Prefix, eta: float = 1.0) -> float:
        """η·log E exp(R/η)."""
        rewards, weights = self.returns(prompt, prefix)
        return float(eta * torch.logsumexp(rewards / eta + weights.log(), 0))

    def attribute(self, prompt: Prefix, prefix: Prefix, threshold: float = 0.0) -> float:
        """P(R > threshold | prefix)."""
        rewards, weights = self.returns(prompt, prefix)
        return float(weights[rewards > threshold].sum())

    def q(self, prompt: Prefix, prefix: Prefix) -> Tensor:
        """Q^π0(prefix, ·) = V^π0(prefix + ·), [vocab]; only for prefixes that have not ended."""
        nexts = [self.value(prompt, (*prefix, v)) for v in range(VOCABULARY)]
        return torch.tensor(nexts, dtype=torch.float64)

    def table(self, exact: Callable[[Prefix, Prefix], Any]) -> Tensor:
        """An exact quantity of every state: [states] float64."""
        return torch.stack(
            [torch.as_tensor(exact(*state), dtype=torch.float64) for state in self.states]
        )

    def where(self, keep: Callable[[Prefix, Prefix], bool]) -> Tensor:
        """A mask of states: [states] bool."""
        return torch.tensor([keep(*state) for state in self.states])

    # Samples.

    def draw(
        self, kind: str, n: int, generator: torch.Generator, *, sharpness: float = 1.0, k: int = 4
    ) -> Tensor:
        """Indices into `rollouts`, best first within an item: [n·1], [n·2] or [n·k] int64.

        The judge of pairs and rankings is Bradley-Terry's or Plackett-Luce's with the utilities
        sharpness·R: it ranks by sharpness·R + Gumbel noise.
        """
        k = {"rollouts": 1, "pairs": 2, "ranked": k}[kind]
        per_prompt = len(self.rollouts) // len(PROMPTS)
        prompts = torch.randint(len(PROMPTS), (n,), generator=generator)
        weights = self.probabilities.view(len(PROMPTS), per_prompt)[prompts]
        indices = torch.multinomial(weights, k, replacement=True, generator=generator)
        indices = indices + prompts[:, None] * per_prompt
        noise = -torch.empty(n, k, dtype=torch.float64).exponential_(generator=generator).log()
        order = (sharpness * self.rewards[indices] + noise).argsort(1, descending=True)
        return indices.gather(1, order).flatten()

    def sample(self, kind: str, n: int, seed: int = 0, **judge: Any) -> list[Any]:
        """n items: `Rollout`s, `Pair`s or `Ranked`s."""
        indices = self.draw(kind, n, torch.Generator().manual_seed(seed), **judge)
        groups = [[self.rollouts[i] for i in group] for group in indices.view(n, -1).tolist()]
        if kind == "rollouts":
            return [group[0] for group in groups]
        if kind == "pairs":
            return [Pair(a.prompt, a.completion, b.completion) for a, b in groups]
        return [Ranked(g[0].prompt, [one.completion for one in g]) for g in groups]

    def at(self, values: Tensor) -> Tensor:
        """Select the values of states from those of positions: [finals, length, …] → [states, …].

        A state is at the position of its last token; the empty prefix is at the prompt's last.
        """
        rows = torch.tensor([self._under[state][0] for state in self.states])
        return values[rows, torch.tensor([len(x) + len(y) - 1 for x, y in self.states])]
