"""Prefix scores of a batch are those of each prefix alone, for every family."""

import math
import random
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, set_seed

from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.networks import build, next_histograms
from trimtab_models.rows import Rollout
from trimtab_models.scoring import expected, prefix_scores

VOCABULARY = 11


def _config(**more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=0.5,
        **more,
    )


def _network(head: Any, seed: int) -> Any:
    set_seed(seed)
    model = build(head, _config(), bins=5)
    for parameter in model.parameters():  # heads that begin at 0 included
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def _rollouts(seed: int, n: int = 9) -> list[Rollout]:
    draw = random.Random(seed)

    def ids(most: int) -> list[int]:
        return [draw.randrange(1, VOCABULARY) for _ in range(draw.randint(1, most))]

    return [Rollout(ids(6), ids(12), 0.0) for _ in range(n)]


def _last(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


def _slow(model: Any, info: ScorerInfo, prompt: list[int], prefix: list[int], **more: Any) -> float:
    """The definition, one prefix at a time."""
    if info.family == "vocabulary":
        first = 0 if info.adds_up else len(prefix) - 1
        taken = range(first, len(prefix))
        return sum(float(_last(model, prompt + prefix[:t])[prefix[t]]) for t in taken)
    if info.family == "log_ratio":
        total = 0.0
        for t, token in enumerate(prefix):
            total += float(_last(model, prompt + prefix[:t]).log_softmax(-1)[token])
            if (reference := more.get("reference")) is not None:
                total -= float(_last(reference, prompt + prefix[:t]).log_softmax(-1)[token])
        return info.alpha * total
    output = _last(model, prompt + prefix)
    if info.family == "distribution":
        low, high = info.support or (0.0, 0.0)
        if info.ahead:
            before = _last(model, prompt + prefix[:-1])
            output = next_histograms(before, VOCABULARY)[prefix[-1]]
        bins = [(w, low + b * (high - low) / 4) for b, w in enumerate(output.double().softmax(-1))]
        if c := more.get("strength", 0.0):
            return math.log(sum(w * math.exp(c * r) for w, r in bins)) / c
        return float(sum(w * r for w, r in bins))
    value = output[0].double()
    if info.link == "sigmoid":
        value = 1 / (1 + (-value).exp())
    if info.link == "log_sigmoid":
        value = -(1 + (-value).exp()).log()
    return float(value)


_AHEAD = ScorerInfo(family="distribution", support=(0, 2), ahead=True)


@pytest.mark.parametrize(
    ("head", "info", "more"),
    [
        ("scalar", ScorerInfo(), {}),
        ("scalar", ScorerInfo(link="sigmoid"), {}),
        ("scalar", ScorerInfo(link="log_sigmoid"), {}),
        ("distribution", ScorerInfo(family="distribution", support=(-1, 3)), {}),
        ("distribution", ScorerInfo(family="distribution", support=(0, 1)), {"strength": 2.5}),
        ("distributions", _AHEAD, {}),
        ("distributions", _AHEAD, {"strength": -1.5}),
        ("vocabulary", ScorerInfo(family="vocabulary"), {}),
        ("vocabulary", ScorerInfo(family="vocabulary", adds_up=True), {}),
        ("language", ScorerInfo(family="log_ratio", alpha=0.3), {}),
        ("language", ScorerInfo(family="log_ratio", alpha=2.0), {"reference": True}),
    ],
)
def test_prefix_scores_are_those_of_each_prefix_alone(
    head: Any, info: ScorerInfo, more: dict[str, Any]
) -> None:
    seed = random.randrange(10**6)
    model, rollouts = _network(head, seed), _rollouts(seed)
    if "reference" in more:
        more = {"reference": _network(head, seed + 1)}
    result = prefix_scores(model, info, rollouts, 0, batch_size=4, **more)
    for rollout, scores in zip(rollouts, result, strict=True):
        assert scores.shape == (len(rollout.completion),)
        assert scores.dtype == torch.float32
        slow = [
            _slow(model, info, rollout.prompt, rollout.completion[: t + 1], **more)
            for t in range(len(scores))
        ]
        assert scores.tolist() == pytest.approx(slow, abs=1e-4), f"seed {seed}"


def test_a_sequence_classifier_is_read_at_every_position() -> None:
    set_seed(1)
    model = AutoModelForSequenceClassification.from_config(_config(num_labels=1)).eval()
    [rollout, *_] = rollouts = _rollouts(1)
    scores = prefix_scores(model, ScorerInfo(), rollouts, 0)[0]
    for t in range(1, len(scores) + 1):
        ids = torch.tensor([rollout.prompt + rollout.completion[:t]])
        assert scores[t - 1].item() == pytest.approx(model(ids).logits.item(), abs=1e-5)


def test_small_strengths_tend_to_the_mean() -> None:
    logits = torch.randn(3, 4, 7, dtype=torch.float32)
    mean = expected(logits, (-2, 2))
    assert torch.allclose(expected(logits, (-2, 2), 1e-3), mean, atol=5e-3)
    assert (expected(logits, (-2, 2), 3.0) > mean).all()
    assert (expected(logits, (-2, 2), -3.0) < mean).all()


@pytest.mark.parametrize("strength", [1e-30, 1e-8, 1e-6, 1e-5, -1e-5, 1e-4])
def test_small_strengths_keep_the_digits_of_the_mean(strength: float) -> None:
    """E[R] + c·Var[R]/2: divided by c, the rounding of a plain log-sum-exp would be all of it."""
    even = expected(torch.zeros(2, 3, 2), (0.0, 1.0), strength)
    torch.testing.assert_close(even, torch.full((2, 3), 0.5 + strength / 8), atol=2e-7, rtol=0)


def test_a_network_in_training_is_scored_without_dropout() -> None:
    model = _network("scalar", 0)
    model.dropout = torch.nn.Dropout(0.9)
    calm = prefix_scores(model.eval(), ScorerInfo(), _rollouts(0), 0)
    model.train()
    again = prefix_scores(model, ScorerInfo(), _rollouts(0), 0)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(calm, again, strict=True))


def test_what_cannot_be_scored_says_so() -> None:
    model = _network("distribution", 0)
    with pytest.raises(ValueError, match="support"):
        prefix_scores(model, ScorerInfo(family="distribution"), _rollouts(0), 0)
    with pytest.raises(ValueError, match="at least one token"):
        prefix_scores(model, ScorerInfo(), [Rollout([1], [], 0.0)], 0)
    assert prefix_scores(model, ScorerInfo(), [], 0) == []
