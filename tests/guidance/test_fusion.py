import pytest
import torch

from trimtab.candidates import every, select
from trimtab.fusion import divergence, fuse_, fuse_reference


def fuse(logits, candidates, bonus, tail_mean):
    """The rows, in some order, in the midst of a larger batch that must not change."""
    batch = torch.randn(len(logits) + 3, logits.shape[1])
    index = torch.randperm(len(batch))[: len(logits)]
    batch[index] = logits
    fused = batch.clone()
    fuse_(fused, index.tolist(), candidates, bonus, tail_mean)
    others = torch.ones(len(batch), dtype=torch.bool)
    others[index] = False
    assert torch.equal(fused[others], batch[others])
    return fused[index]


def case(seed, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    rows, vocab = 7, 40
    logits = torch.randn(rows, vocab, generator=generator) * 3
    logits[:, ::5] = -torch.inf
    candidates = select(
        logits,
        torch.randint(1, 20, (rows,), generator=generator),
        torch.rand(rows, generator=generator).clamp(min=0.05),
    )
    bonus = torch.randn(candidates.tokens.shape, generator=generator) * scale
    tail_mean = torch.rand(rows, generator=generator) < 0.5
    counts = candidates.counts.tolist()
    tokens = [row[:n] for row, n in zip(candidates.tokens.tolist(), counts, strict=True)]
    bonuses = [row[:n] for row, n in zip(bonus.tolist(), counts, strict=True)]
    tails = ["mean" if mean else "truncate" for mean in tail_mean.tolist()]
    expected = fuse_reference(logits, tokens, bonuses, tails)
    return logits, candidates, bonus, tail_mean, expected


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_definition(seed):
    logits, candidates, bonus, tail_mean, expected = case(seed)
    torch.testing.assert_close(fuse(logits, candidates, bonus, tail_mean), expected)


def test_the_whole_vocabulary_equals_the_definition():
    logits = case(0)[0]
    candidates, (rows, vocab) = every(logits), logits.shape
    bonus, tail_mean = torch.randn(rows, vocab), torch.rand(rows) < 0.5
    expected = fuse_reference(logits, candidates.tokens.tolist(), bonus.tolist(), ["mean"] * rows)
    torch.testing.assert_close(fuse(logits, candidates, bonus, tail_mean), expected)
    some = torch.tensor([4, 1])
    fused = fuse(logits[some], candidates.rows(some), bonus[some], tail_mean[some])
    torch.testing.assert_close(fused, expected[some])


@pytest.mark.parametrize("seed", range(20))
def test_divergence_is_kl_over_the_whole_vocabulary(seed):
    logits, candidates, bonus, tail_mean, expected = case(seed)
    p, q = expected.double().log_softmax(-1), logits.double().log_softmax(-1)
    terms = torch.where(p > -torch.inf, p.exp() * (p - q), 0.0)
    kl, log_z = divergence(candidates, bonus, tail_mean)
    torch.testing.assert_close(kl, terms.sum(-1).float(), rtol=1e-4, atol=1e-5)
    chosen = expected.log_softmax(-1).gather(1, candidates.tokens[:, :1])[:, 0]
    torch.testing.assert_close(candidates.logprobs[:, 0] + bonus[:, 0] - log_z, chosen)


def test_tails_by_hand():
    """Two candidates of probability 0.6 and 0.3, scores 1 and −1, β = 1."""
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    candidates = select(logits, torch.tensor([2]), torch.tensor([1.0]))
    bonus = torch.tensor([[1.0, -1.0]])
    cut = fuse(logits, candidates, bonus, torch.tensor([False]))
    assert cut[0, 2] == -torch.inf
    e = torch.tensor(1.0).exp()
    torch.testing.assert_close(cut[0].softmax(-1)[0], 0.6 * e / (0.6 * e + 0.3 / e))
    kept = fuse(logits, candidates, bonus, torch.tensor([True]))
    torch.testing.assert_close(kept[0, 2], logits[0, 2])  # the mean score is 0


def test_extreme_bonuses_stay_finite():
    logits, candidates, bonus, tail_mean, _ = case(3, scale=1e4)
    fused = fuse(logits, candidates, bonus, tail_mean)
    assert not fused.isnan().any()
    assert fused.isfinite().any(-1).all()
    kl, _ = divergence(candidates, bonus, tail_mean)
    assert kl.isfinite().all()
