import pytest
import torch

from trimtab import candidates as candidates_module
from trimtab.candidates import largest, log_softmax_at, select, select_reference


def ragged(candidates):
    pairs = zip(candidates.tokens.tolist(), candidates.counts.tolist(), strict=True)
    return [tokens[:n] for tokens, n in pairs]


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_definition(seed):
    generator = torch.Generator().manual_seed(seed)
    rows, vocab = 9, 50
    logits = torch.randn(rows, vocab, generator=generator) * 4
    masked = torch.rand(rows, vocab, generator=generator) < 0.3
    masked[:, 7] = False
    logits[masked] = -torch.inf
    k = torch.randint(1, 60, (rows,), generator=generator)
    mass = torch.rand(rows, generator=generator).clamp(min=0.01)
    mass[::3] = 1.0
    candidates = select(logits, k, mass, int(k.max()))
    assert ragged(candidates) == select_reference(logits, k, mass)
    expected = logits.log_softmax(-1).gather(1, candidates.tokens)
    torch.testing.assert_close(candidates.logprobs, expected)
    p, values = logits.softmax(-1), torch.randn(candidates.tokens.shape, generator=generator)
    for r, chosen in enumerate(ragged(candidates)):
        assert float(candidates.mass[r]) == pytest.approx(float(p[r, chosen].sum()), abs=1e-5)
        mean = values[r, : len(chosen)].mean()
        assert float(candidates.mean(values)[r]) == pytest.approx(float(mean), abs=1e-5)


def test_mass_one_is_always_k():
    logits = torch.zeros(1, 64)
    logits[0, 0] = 40.0  # its probability rounds to 1
    assert select(logits, torch.tensor([5]), torch.tensor([1.0]), 5).counts.tolist() == [5]
    assert select(logits, torch.tensor([5]), torch.tensor([0.99]), 5).counts.tolist() == [1]


def test_masked_tokens_are_never_candidates():
    logits = torch.full((1, 8), -torch.inf)
    logits[0, 3] = 0.0
    candidates = select(logits, torch.tensor([8]), torch.tensor([1.0]), 8)
    assert ragged(candidates) == [[3]]


@pytest.mark.parametrize("seed", range(10))
def test_blocks_have_the_largest_logits(seed, monkeypatch):
    """Of vocabularies of any length, with equal and masked logits; in parts of few rows."""
    monkeypatch.setattr(candidates_module, "MANY", 0)
    monkeypatch.setattr(candidates_module, "CACHED", 5000)
    generator = torch.Generator().manual_seed(seed)
    k = int(torch.randint(1, 5, (), generator=generator))
    vocab = int(torch.randint(8 * 64 * k, 8 * 64 * k + 200, (), generator=generator))
    logits = torch.randn(7, vocab, generator=generator)
    logits[1] = logits[1].round()
    logits[2, 5:-1] = -torch.inf
    logits[3, -1] = logits[4, 0] = 9.0
    tokens = largest(logits, k)
    assert torch.equal(logits.gather(1, tokens), logits.topk(k).values)
    assert all(len(set(row)) == k for row in tokens.tolist())
    expected = logits.log_softmax(-1).gather(1, tokens)
    torch.testing.assert_close(log_softmax_at(logits, tokens), expected)
