"""Utilities of returns: log E exp(c·u(R)) on the bins, η of cvar, and rows that use them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from trimtab.candidates import select
from trimtab.cvar import eta
from trimtab.guide import Guide
from trimtab.outlook import Outlook
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers import FunctionScorer
from trimtab.scorers.base import Scorer, soft_values
from trimtab.search.scoring import MISS, score_sequences
from trimtab.utility import checked, levels, read, spell
from trimtab_models.checkpoint import ScorerInfo

VOCAB, BINS = 12, 9
UTILITIES = ["mean", {"target": 0.3}, {"at_least": 0.5}, {"at_most": -0.2}, {"cvar": 0.25}]


class Returns(Scorer):
    """Return distributions that are any function of the tokens."""

    family = "distribution"
    distributional = True
    returns = torch.linspace(-1, 1, BINS)

    def __init__(self):
        super().__init__(ScorerInfo(mean=0.2, deviation=0.5))

    def histograms(self, keys, prefixes, candidates, prompts=()):
        rows = []
        for prefix, group in zip(prefixes, candidates, strict=True):
            for token in group:
                seed = hash((*prefix.tolist(), int(token))) % 2**31
                rows.append(torch.randn(BINS, generator=torch.Generator().manual_seed(seed)))
        return torch.stack(rows)

    def score(self, keys, prefixes, candidates, strengths, prompts=()):
        logits = self.histograms(keys, prefixes, candidates)
        return soft_values(logits, self.returns, candidates, strengths)


def plain(utility, returns, eta=0.0):
    """u(R), return by return."""
    [(kind, x)] = utility.items()
    made = {
        "target": lambda r: -abs(r - x),
        "at_least": lambda r: float(r >= x - 1e-6),
        "at_most": lambda r: float(r <= x + 1e-6),
        "cvar": lambda r: eta - max(eta - r, 0) / x,
    }[kind]
    return [made(float(r)) for r in returns]


@pytest.mark.parametrize("utility", UTILITIES[1:], ids=str)
def test_levels_are_the_definition(utility):
    returns = torch.linspace(-1, 1, 21).double()
    own = levels(checked(utility), returns, -0.3)
    assert own.tolist() == pytest.approx(plain(utility, returns.tolist(), -0.3))
    assert read(spell(checked(utility))) == checked(utility)


def row(fields, prefix=(1, 2), **more):
    params = GuidanceParams.parse({"k": 6, "mass": 1.0, **fields})
    return Row(params.resolve(SERVED), len(prefix), prefix=np.array(prefix), **more)


SERVED = {"r": Returns(), "other": FunctionScorer(lambda ids: float(ids[-1] % 3))}


def step(rows, seed=0):
    guide = Guide(SERVED)
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed))
    fused = logits.repeat(len(rows), 1)
    guide.step(fused, list(enumerate(rows)))
    return guide, logits[0], fused


@pytest.mark.parametrize("tail", ["mean", "truncate"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("beta", [2.0, -1.5])
@pytest.mark.parametrize("utility", UTILITIES[1:], ids=str)
def test_guided_logits_are_the_definition(utility, beta, normalize, tail):
    fields = {"scorers": {"r": 0.7, "other": 0.3}, "beta": beta, "utility": {"r": utility}}
    one = row({**fields, "tail": tail, "normalize": normalize})
    _, logits, [fused] = step([one])
    order = logits.argsort(descending=True)
    tokens = order[:6].numpy()
    p = SERVED["r"].histograms([0], [one.prefix], [tokens]).double().softmax(-1).numpy()
    scaled = normalize and set(utility) <= {"target", "cvar"}
    c = beta * 0.7 / (0.5 if scaled else 1)
    returns = SERVED["r"].returns.tolist()
    if "cvar" in utility:
        mixture = logits[order[:6]].double().softmax(0).numpy() @ p
        pick = max if c > 0 else min
        best = pick(
            returns, key=lambda x: mixture @ np.exp(c * np.array(plain(utility, returns, x)))
        )
        assert one.plan.eta["r"] == pytest.approx(best)
        u = plain(utility, returns, best)
    else:
        u = plain(utility, returns)
    bonus = special.logsumexp(c * np.array(u), b=p, axis=1) + beta * 0.3 * (tokens % 3)
    expected = torch.full_like(logits, -torch.inf if tail == "truncate" else 0.0)
    if tail == "mean":
        expected = logits + bonus.mean()
    expected[tokens] = logits[tokens] + torch.from_numpy(bonus).float()
    torch.testing.assert_close(
        fused.log_softmax(-1), expected.log_softmax(-1), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("fields", [{"beta": 3.0}, {"kl_budget": 0.5}, {"floors": {"r": 0.5}}])
def test_a_mean_is_what_it_was_bit_for_bit(fields):
    weights = {"scorers": {"r": 1.0, "other": 0.5}}
    named = {**fields, "utility": {"r": "mean", "other": "mean"}}
    rows = [row({**weights, **fields}), row({**weights, **named})]
    _, _, fused = step(rows)
    assert torch.equal(fused[0], fused[1])


def test_what_does_not_steer_is_the_base_bit_for_bit():
    aims = {"utility": {"r": {"target": 0.1}}}
    rows = [
        row({"beta": 0.0, **aims}),
        row({"scorers": {"r": 0.0}, "beta": 3.0, **aims}),
        row({"kl_budget": 0.0, "floors": {"r": 0.9}}),
        row({"ceilings": {"r": 1.0}, "beta": 2.0}),
        row({"scorers": {"r": 1.0}, "beta": 2.0, "utility": {"r": {"at_least": 7.0}}}),
        row({"scorers": {"r": 1.0}, "beta": 2.0, **aims}),  # the control
    ]
    _, logits, fused = step(rows)
    assert [torch.equal(one, logits) for one in fused] == [True] * 5 + [False]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6), share=st.floats(0.05, 1), c=st.floats(0.1, 20) | st.floats(-9, -0.1)
)
def test_eta_is_the_best_of_a_fine_grid(seed, share, c):
    """No η between the bins is better, for a positive c; for a negative one, hardly."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 8, generator=generator)
    candidates = select(logits, torch.tensor([5]), torch.tensor([1.0]), 5)
    candidates.logprobs = candidates.logprobs.double()
    log_p = torch.randn(5, BINS, generator=generator, dtype=torch.float64).log_softmax(-1)
    returns = torch.linspace(-1, 2, BINS, dtype=torch.float64)
    place = torch.arange(5)
    outlook = Outlook(log_p, returns, torch.zeros_like(place), place, torch.ones(1).double())
    p = candidates.logprobs[0].softmax(-1).numpy() @ log_p.exp().numpy()

    def value(x):
        u = x - np.maximum(x - returns.numpy(), 0) / share
        return special.logsumexp(c * u, b=p) / c

    own = value(eta(0, share, c, outlook, candidates))
    grid = np.array([value(x) for x in np.linspace(-1, 2, 1000)])
    if c > 0:
        assert own >= grid.max() - 1e-9
    else:  # the lowest E exp: max and min change places
        best = min(value(x) * c for x in returns.tolist())
        assert own * c == pytest.approx(best)


def test_eta_is_kept_for_the_answer_and_told_to_the_record():
    one = row({"scorers": {"r": 1.0}, "beta": 3.0, "utility": {"r": {"cvar": 0.2}}})
    one.record_key = "kept"
    guide, logits, _ = step([one])
    first = one.plan.eta["r"]
    for token in (3, 4, 5):
        one.prefix = np.append(one.prefix, token)
        guide.step(logits[None].clone(), [(0, one)])
        assert one.plan.eta["r"] == first
    [record] = guide.records.report("kept", [1, 2], [[3, 4, 5, 6]], done=True)
    p = SERVED["r"].histograms([0], [one.prefix], [np.array([6])])[0].double().softmax(-1)
    u = levels({"cvar": 0.2}, SERVED["r"].returns.double(), first)
    assert record["scores"]["r"] == pytest.approx(float(p @ SERVED["r"].returns.double()))
    expected = float((p * (3.0 * u).exp()).sum().log() / 3.0)
    assert record["utilities"] == {"r": pytest.approx(expected)}


def test_a_record_adds_up():
    fields = {
        "scorers": {"r": 1.0, "other": 0.5},
        "utility": {"r": {"target": 0.4}},
        "ceilings": {"r": 0.1},
        "kl_budget": 1.0,
        "tail": "truncate",
        "trace": True,
    }
    one = row(fields, record_key="kept", max_tokens=8)
    guide, logits, _ = step([one])
    for token in (3, 4, 5):
        one.prefix = np.append(one.prefix, token)
        guide.step(logits[None].clone(), [(0, one)])
    [record] = guide.records.report("kept", [1, 2], [[3, 4, 5, 6]], done=True)
    assert set(record["kl_parts"]) == {"r", "other"}
    assert sum(record["kl_parts"].values()) == pytest.approx(record["kl"] - record["kl_tail"])
    assert record["kl"] == pytest.approx(sum(step["kl"] for step in record["trace"]))
    duals = [step["duals"]["r"] for step in record["trace"]]
    assert record["duals"]["r"] == {"mean": pytest.approx(np.mean(duals)), "last": duals[-1]}
    assert min(duals) < 0 >= max(duals)
    assert record["beta"]["mean"] > 0


def test_a_search_chooses_by_utilities_and_bounds():
    sequences = [[1, 2, 3], [1, 2, 4], [5, 6, 7]]
    p = torch.cat(
        [SERVED["r"].histograms([0], [np.array(s[:-1])], [np.array(s[-1:])]) for s in sequences]
    ).softmax(-1)
    mean = (p.double() @ SERVED["r"].returns.double()).tolist()

    def values(**fields):
        params = GuidanceParams.parse(fields).resolve(SERVED)
        return score_sequences(Guide(SERVED), params, sequences, [10, 11, 12])

    u = levels({"at_least": 0.5}, SERVED["r"].returns.double())
    aimed = values(scorers={"r": 2.0}, beta=1.5, utility={"r": {"at_least": 0.5}})
    expected = [float((q.double() * (3.0 * u).exp()).sum().log() / 3.0) for q in p]
    assert aimed["scores"]["r"] == pytest.approx(expected, abs=1e-6)
    assert aimed["values"] == pytest.approx([2 * x for x in expected], abs=1e-6)
    bounded = values(floors={"r": 0.05}, scorers={"other": 1.0, "r": 9.0}, beta=1.0)
    missed = [max(0.05 - m, 0) for m in mean]
    assert max(missed) > 0
    assert bounded["scores"]["r"] == pytest.approx(mean, abs=1e-6)
    own = [float(s[-1] % 3) - MISS * m for s, m in zip(sequences, missed, strict=True)]
    assert bounded["values"] == pytest.approx(own, abs=1e-4)
    above = values(ceilings={"r": -0.05}, scorers={"r": 1.0}, beta=0.0)
    over = [m - MISS * max(m + 0.05, 0) for m in mean]
    assert above["values"] == pytest.approx(over, abs=1e-4)
