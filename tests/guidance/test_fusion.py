import pytest
import torch

from trimtab.candidates import every, select
from trimtab.fusion import divergence, end_, fuse_, fuse_reference
from trimtab.verdict import Verdict


def verdict(guided, ended=None, stop=None):
    """A verdict; without the rest, no row ends."""
    ended = torch.zeros_like(guided) if ended is None else ended
    stop = torch.zeros(len(guided), dtype=torch.int64) if stop is None else stop
    return Verdict(guided, guided, ended, stop)


def fuse(logits, candidates, bonus, tail_mean, decided=None):
    """The rows, in some order, in the midst of a larger batch that must not change."""
    decided = decided or verdict(torch.ones(len(logits), dtype=torch.bool))
    batch = torch.randn(len(logits) + 3, logits.shape[1])
    index = torch.randperm(len(batch))[: len(logits)]
    batch[index] = logits
    fused = batch.clone()
    done = fuse_(fused, index.tolist(), index, candidates, bonus, tail_mean, decided)
    if done is not None:  # it tells exactly what was done
        again = batch.clone()
        again[done.index] += done.shift[:, None]
        again[torch.tensor(done.index)[:, None], done.tokens] = done.logits
        assert torch.equal(again, fused)
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
        19,
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


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_some_rows_keep_the_bases_logits_or_end(seed, whole):
    """Also where the bonus is not finite."""
    logits, candidates, bonus, tail_mean, expected = case(seed)
    rows, vocab = logits.shape
    if whole:
        candidates, bonus = every(logits), torch.randn(rows, vocab)
        tokens = candidates.tokens.tolist()
        expected = fuse_reference(logits, tokens, bonus.tolist(), ["mean"] * rows)
    fate = torch.randint(3, (rows,))  # guided, not guided, ended
    stop = torch.randint(vocab // 5, (rows,)) * 5 + 1  # allowed
    bonus[fate > 0, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf])[seed % 3]
    for r in (fate > 0).nonzero()[:, 0].tolist():
        expected[r] = logits[r]
        if fate[r] == 2:
            expected[r] = -torch.inf
            expected[r, stop[r]] = logits[r, stop[r]]
    decided = verdict(fate == 0, fate == 2, stop)
    fused = fuse(logits, candidates, bonus, tail_mean, decided)
    torch.testing.assert_close(fused, expected)
    assert torch.equal(fused[fate > 0], expected[fate > 0])


def test_rows_end_whose_stop_token_is_allowed():
    logits = torch.randn(5, 9)
    logits[3, 4] = -torch.inf
    expected = logits.clone()
    for row, token in ((1, 2), (4, 8)):
        expected[row] = -torch.inf
        expected[row, token] = logits[row, token]
    done = end_(logits, [4, 0, 1, 3], [8, -1, 2, 4])
    assert torch.equal(logits, expected)
    assert (done.index, done.tokens.tolist()) == ([4, 1, 3], [[8], [2], [4]])
    assert end_(logits, [2], [-1]) is None


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
    candidates = select(logits, torch.tensor([2]), torch.tensor([1.0]), 2)
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
