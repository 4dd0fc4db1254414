"""Ranks of tokens against a search over all tokens; sampling's own cuts; half of a training."""

import numpy as np
import pytest
import torch

from trimtab_lab.arena.ranks import References, reciprocal
from trimtab_lab.rivals.divergence import log_probabilities, warp, warping
from trimtab_lab.rivals.train import _place_half, half
from trimtab_lab.worlds.tiny import EOS, Tiny
from trimtab_models import networks
from trimtab_models.rows import Rollout

VOCABULARY, BETA = 12, 3.0


@pytest.fixture(scope="module")
def tiny():
    return Tiny()


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_a_rank_is_one_more_than_the_number_of_likelier_tokens(seed, cut):
    rng = np.random.default_rng(seed)
    log_pi0 = torch.tensor(rng.normal(0, 2, VOCABULARY)).log_softmax(-1)
    candidates = log_pi0.argsort(descending=True)[: 1 + seed].tolist()
    bonus = BETA * rng.normal(size=len(candidates))
    # The reference: every token's guided probability.
    logits = {v: float(log_pi0[v]) + bonus.mean() for v in range(VOCABULARY) if not cut}
    logits |= {v: float(log_pi0[v]) + b for v, b in zip(candidates, bonus, strict=True)}
    log_z = np.log(np.exp(list(logits.values())).sum())
    step = {
        "candidates": candidates,
        "logprobs": log_pi0[candidates].tolist(),
        "guided_logprobs": [logits[v] - log_z for v in candidates],
    }
    for token in range(VOCABULARY):
        above = sum(other > logits.get(token, np.inf) + 1e-12 for other in logits.values())
        expected = 1 / (1 + above) if token in logits else 0.0
        assert reciprocal(step, token, log_pi0, cut=cut) == pytest.approx(expected)


def test_a_step_that_was_not_steered_has_the_ranks_of_the_base():
    log_pi0 = torch.tensor([0.2, 0.5, 0.3]).log()
    assert [reciprocal({}, v, log_pi0, cut=True) for v in range(3)] == [1 / 3, 1.0, 1 / 2]


def test_means_are_of_each_answer():
    references = References([[1], [2]], [[5, 6], [7]])
    assert references.prefixes == [[1], [1, 5], [2]]
    np.testing.assert_allclose(references.means([1.0, 0.5, 0.25]), [0.75, 0.25])


def test_sampling_keeps_the_smallest_set_that_reaches_top_p():
    pi = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]], dtype=torch.float64)
    np.testing.assert_allclose(warp(pi.log(), 1.0, 0.75).exp()[0], [0.625, 0.375, 0, 0])
    np.testing.assert_allclose(warp(pi.log(), 1.0, 0.81).exp()[1, 1:] * 0.95, pi[1, 1:])
    np.testing.assert_allclose(warp(pi.log(), 0.5, 1.0).exp()[0], pi[0] ** 2 / (pi[0] ** 2).sum())


def test_the_kl_of_sampling_is_that_of_its_steps(tiny):
    answers = [Rollout([1, 2], [3, 2, EOS], 0.0), Rollout([3], [1, EOS], 0.0)]
    nats = warping(tiny.base, answers, EOS, 0.5, 0.9)
    whole = log_probabilities(tiny.base, answers, EOS)
    for answer, kl, total in zip(answers, nats, whole, strict=True):
        expected = log_p = 0.0
        for t, token in enumerate(answer.completion):
            ids = torch.tensor([answer.prompt + answer.completion[:t]])
            with torch.inference_mode():
                base = tiny.base(input_ids=ids).logits[0, -1].double().log_softmax(-1)
            sharp = warp(base, 0.5, 0.9).exp()
            expected += sum(float(p * (p.log() - q)) for p, q in zip(sharp, base, strict=True) if p)
            log_p += float(base[token])
        assert float(kl) == pytest.approx(expected)
        assert float(total) == pytest.approx(log_p)


def test_the_policy_of_half_the_steps_stays(tiny, tmp_path):
    work, out = tmp_path / "rl-3.run", tmp_path / "rl-3"
    tiny.base.float().save_pretrained(work / "checkpoint-40")

    class Tokenizer:
        def save_pretrained(self, path):
            (path / "tokenizer.json").write_text("{}")

    _place_half(work, 60, half(out), Tokenizer())
    assert not half(out).exists(), "there is no checkpoint of step 30"
    _place_half(work, 80, half(out), Tokenizer())
    kept = networks.build("language", half(out), dtype=torch.float32).state_dict()
    for name, value in tiny.base.state_dict().items():
        torch.testing.assert_close(kept[name], value)
    tiny.base.double()
