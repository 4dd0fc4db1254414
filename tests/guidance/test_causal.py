"""Long readings without a mask of [tokens, keys] equal those with one."""

import math

import numpy as np
import pytest
import torch

from networks import VOCAB, configs
from test_backbone import build, reference
from trimtab.scoring import attention
from trimtab.scoring.causal import BLOCK, causal
from trimtab.scoring.merging import HIDDEN, by_formula

LONG = 700


def dense(q, k, v, window, scale):
    """The definition: every logit, and a mask of [n, keys]."""
    kv, fold, n, dim = q.shape
    keys = k.shape[1]
    key, own = torch.arange(keys), torch.arange(keys - n, keys)[:, None]
    hidden = key > own
    if window is not None:
        hidden |= key <= own - window
    bias = (hidden * HIDDEN)[None, None].to(q.dtype)
    each = [part[None].repeat_interleave(fold, 1) for part in (k, v)]
    out, lse = by_formula(q.reshape(1, -1, n, dim), *each, bias, scale)
    return out.view(kv, fold, n, dim), lse.view(kv, fold, n)


@pytest.mark.parametrize("window", [None, 1, 7, BLOCK, 200, 10_000])
@pytest.mark.parametrize("cached", [0, 1, 90, 300])
@pytest.mark.parametrize("n", [1, BLOCK - 1, 2 * BLOCK + 5])
def test_causal_attention(window, cached, n):
    kv, fold, dim = 2, 3, 16
    generator = torch.Generator().manual_seed(np.random.SeedSequence().generate_state(1).item())
    q = torch.randn(kv, fold, n, dim, generator=generator)
    k, v = torch.randn(2, kv, cached + n, dim, generator=generator)
    expected = dense(q, k, v, window, 0.3)
    for part, other in zip(causal(q, k, v, window, 0.3), expected, strict=True):
        torch.testing.assert_close(part, other, rtol=1e-5, atol=1e-5)


def histories(rng, rows=6):
    """Steps of rows that grow, or are cut, with candidates or without; some begin alike."""
    start = rng.integers(VOCAB, size=20)
    kept = [20, 20, 20, 1, 1, 1]
    texts = [np.append(start[:n], rng.integers(VOCAB, size=5)) for n in kept]
    for step in range(8):
        for r in range(rows):
            text = texts[r][: rng.integers(kept[r], len(texts[r]) + 1)]
            texts[r] = np.append(text, rng.integers(VOCAB, size=rng.integers(0, 15)))[:100]
        candidates = [rng.permutation(VOCAB)[: rng.integers(1, 6)] for _ in texts]
        yield list(texts), candidates if step % 3 else None


@pytest.mark.parametrize("kind", ["llama", "qwen2-sliding", "gpt2"])
def test_spans_in_any_history(kind, monkeypatch):
    """Rows of few and of many new tokens in one forward, some with candidates."""
    monkeypatch.setattr("trimtab.scoring.shared.SAVED", 8)
    monkeypatch.setattr("trimtab.scoring.shared.DEPTHS", (16, 8))
    monkeypatch.setattr("trimtab.scoring.causal.BLOCK", 4)
    rng = np.random.default_rng()
    made = {many: build(configs()[kind], max_length=100) for many in (5, math.inf)}
    spans, plain = [], attention.Grouped.build

    def counted(*arguments):
        grouped = plain(*arguments)
        spans.append((len(grouped.spans), len(grouped.groups), len(grouped.runs)))
        return grouped

    monkeypatch.setattr(attention.Grouped, "build", counted)
    for texts, candidates in histories(rng):
        results = []
        for many, backbone in made.items():
            monkeypatch.setattr(attention, "MANY", many)
            results.append(backbone.hidden(range(len(texts)), texts, candidates))
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
        if candidates is not None:
            expected = reference(backbone, texts, candidates)
            torch.testing.assert_close(results[0], expected, rtol=1e-4, atol=1e-4)
    assert any(a and b for a, b, _ in spans), "spans beside groups"
    assert any(a and c for a, _, c in spans), "spans beside runs"


@pytest.mark.parametrize("kind", ["llama", "qwen2-sliding"])
def test_no_mask_of_tokens_and_keys(kind, monkeypatch):
    """And the control: with the dense form there is one."""
    config = configs()[kind]
    config.max_position_embeddings = LONG + 8
    backbone = build(config, max_length=LONG)
    rng, sizes = np.random.default_rng(), []
    for module in ("attention", "causal"):
        plain = attention.attend

        def counted(q, k, v, bias, scale, plain=plain, **options):
            sizes.append(0 if bias is None else bias.numel())
            return plain(q, k, v, bias, scale, **options)

        monkeypatch.setattr(f"trimtab.scoring.{module}.attend", counted)
    text, candidates = rng.integers(VOCAB, size=LONG), rng.permutation(VOCAB)[:4]
    backbone.hidden([0], [text], [candidates])
    fold = 2
    assert max(sizes) <= max(fold * BLOCK * (BLOCK + 9), fold * len(candidates) * (LONG + 4))
    sizes.clear()
    monkeypatch.setattr(attention, "MANY", math.inf)
    backbone.hidden([1], [rng.integers(VOCAB, size=LONG)], [candidates])
    assert max(sizes) >= fold * LONG * LONG
