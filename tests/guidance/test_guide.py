"""The guide: formulas, faults that stay with their rows, and records."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab import outcome
from trimtab.candidates import select_reference
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers import FunctionScorer
from trimtab.scorers.base import Scorer
from trimtab_models.checkpoint import ScorerInfo

VOCAB = 24


def plain(ids):
    return float(np.sin(sum((i + 1) * t for i, t in enumerate(ids))))


class Broken(Scorer):
    """Fails, in a chosen way, for prefixes that begin with 13."""

    family = "function"

    def __init__(self, how):
        super().__init__(ScorerInfo())
        self.how = how

    def score(self, keys, prefixes, candidates, strengths, prompts=()):
        out = []
        for prefix, group in zip(prefixes, candidates, strict=True):
            values = torch.ones(len(group))
            if prefix[0] == 13:
                if self.how == "raise":
                    raise RuntimeError("secret")
                if self.how == "shape":
                    return torch.zeros(1, 2, 3)
                values[0] = {"nan": torch.nan, "+inf": torch.inf, "-inf": -torch.inf, "huge": 3e38}[
                    self.how
                ]
            out.append(values)
        return torch.cat(out)


class Strength(Scorer):
    """Its score is the strength itself, plus one for odd tokens."""

    family = "function"

    def score(self, keys, prefixes, candidates, strengths, prompts=()):
        rows = zip(candidates, strengths, strict=True)
        return torch.cat([torch.from_numpy(group % 2) + c for group, c in rows]).float()


def make(prefix, **fields):
    fields = {"scorers": {"plain": 1.0}, "beta": 2.0} | fields
    row = Row(GuidanceParams.parse(fields), len(prefix), stop_token=0)
    row.prefix = np.array(prefix)
    return row


def logits(rows, seed=0):
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def reference(base, row, scorers):
    """One row, by the formula of the design."""
    p = row.params
    order = base.argsort(descending=True)[: p.k].tolist()
    probabilities = base.softmax(-1)
    candidates, reached = [], 0.0
    for token in order:
        candidates.append(token)
        reached += float(probabilities[token])
        if p.mass < 1 and reached >= p.mass:
            break
    bonus = {}
    for token in candidates:
        bonus[token] = 0.0
        for name, w in p.scorers.items():
            s = scorers[name].function([*row.prefix.tolist(), token])
            info = scorers[name].info
            bonus[token] += p.beta * w * ((s - info.mean) / info.deviation if p.normalize else s)
    mean = sum(bonus.values()) / len(bonus)
    tail = -torch.inf if p.tail == "truncate" else mean
    return torch.tensor([float(base[v]) + bonus.get(v, tail) for v in range(VOCAB)])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "beta": st.floats(-8, 8).filter(lambda b: b != 0),
                "k": st.integers(1, 30),
                "mass": st.sampled_from([0.3, 0.9, 0.99, 1.0]),
                "tail": st.sampled_from(["truncate", "mean"]),
                "normalize": st.booleans(),
                "scorers": st.sampled_from(
                    [{"plain": 1.0}, {"other": -2.0}, {"plain": 0.5, "other": 1.5}]
                ),
            }
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_mixed_rows_equal_the_formula(seed, rows):
    scorers = {
        "plain": FunctionScorer(plain, info=ScorerInfo(mean=0.3, deviation=0.6)),
        "other": FunctionScorer(
            lambda ids: float(ids[-1] % 5), info=ScorerInfo(mean=2, deviation=1.4)
        ),
    }
    guide, base = Guide(scorers), logits(len(rows) + 1, seed)
    made = [make([5 + r, 2], **fields) for r, fields in enumerate(rows)]
    fused = base.clone()
    guide.step(fused, list(enumerate(made)))
    assert torch.equal(fused[-1], base[-1])  # an unguided row is untouched, bit for bit
    for r, row in enumerate(made):
        expected = reference(base[r], row, scorers)
        # A constant shift of a whole row is the same distribution.
        torch.testing.assert_close(fused[r].softmax(-1), expected.softmax(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_each_row_is_scored_at_its_own_strength(normalize):
    """The bonus is c·(s − mean) with s at c = β·w, over the deviation if normalised."""
    info = ScorerInfo(mean=0.25, deviation=0.5)
    guide = Guide({"plain": FunctionScorer(plain), "own": Strength(info)})
    rows = [
        make([4], scorers={"own": w}, beta=beta, k=5, mass=1.0, normalize=normalize)
        for w, beta in ((1.0, 2.0), (-0.5, 3.0), (1.0, 0.0))
    ]
    base = logits(3)
    fused = base.clone()
    for i, row in enumerate(rows):
        row.record_key = str(i)
    guide.step(fused, list(enumerate(rows)))
    mean, deviation = (0.25, 0.5) if normalize else (0.0, 1.0)
    for r, strength in enumerate((2.0, -1.5, 0.0)):
        c = strength / deviation
        if c:
            chosen = base[r].topk(5).indices
            expected = base[r][chosen] + c * (c + chosen % 2 - mean)
            torch.testing.assert_close(fused[r][chosen], expected)
        [record] = guide.records.report(str(r), [4], [[7]], done=True)
        assert record["scores"]["own"] == pytest.approx(c + 1)


def test_beta_zero_is_the_base_bit_for_bit():
    guide, base = Guide({"plain": FunctionScorer(plain)}), logits(2)
    fused = base.clone()
    guide.step(fused, [(0, make([1], beta=0.0)), (1, make([1], beta=0.0, tail="truncate"))])
    assert torch.equal(fused, base)


@pytest.mark.parametrize("how", ["raise", "shape", "nan", "+inf", "-inf", "huge"])
@pytest.mark.parametrize("on_error", ["fail", "unguided"])
def test_a_fault_stays_with_its_row(how, on_error):
    guide = Guide({"plain": FunctionScorer(plain), "bad": Broken(how)})
    fields = {"scorers": {"bad": 1.0, "plain": 1.0}, "beta": 8.0, "on_error": on_error}
    rows = [make([1, 2], **fields), make([13, 2], **fields), make([3, 2])]
    base = logits(3)
    fused = base.clone()
    guide.step(fused, list(enumerate(rows)))
    alone = base.clone()
    guide.step(alone, [(0, make([1, 2], **fields)), (2, make([3, 2]))])
    assert torch.equal(fused[0], alone[0])
    assert torch.equal(fused[2], alone[2])
    assert not torch.equal(fused[0], base[0])
    assert [row.fault is not None for row in rows] == [False, True, False]
    assert guide.registry.faults["bad"] == 1
    assert "secret" not in rows[1].fault.message
    if on_error == "unguided":
        assert torch.equal(fused[1], base[1])
    else:  # only the stop token is left
        assert torch.isfinite(fused[1]).nonzero().tolist() == [[0]]
    # It does not come back.
    rows[1].prefix = np.array([1, 2])
    again = base.clone()
    guide.step(again, [(1, rows[1])])
    assert guide.registry.faults["bad"] == 1


@pytest.mark.parametrize("how", ["raise", "nan", "huge"])
@pytest.mark.parametrize("on_error", ["fail", "unguided"])
def test_what_a_step_did_may_be_noted_late(how, on_error):
    """At the next step, or when a record is fetched: the logits and the records stay the same."""
    fields = {"scorers": {"bad": 1.0, "plain": 1.0}, "beta": 8.0, "on_error": on_error}
    results = []
    for late in (False, True):
        guide = Guide({"plain": FunctionScorer(plain), "bad": Broken(how)})
        guide.late = late
        rows = [make(prefix, **fields) for prefix in ([1, 2], [13, 2], [3, 2], [5, 2])]
        for r, row in enumerate(rows):
            row.record_key = str(r)
        first, again = logits(4), logits(4, seed=1)
        guide.step(first, list(enumerate(rows[:3])))
        assert [row.fault is not None for row in rows] == [
            False,
            how == "raise" or not late,  # what it raises is known at once
            False,
            False,
        ]
        assert late or rows[0].steps
        for row in rows[:2]:  # the others have ended; their slots are not used again
            row.prefix = np.append(row.prefix, 7)
        guide.step(again, [(0, rows[0]), (1, rows[1]), (3, rows[3])])
        ended = [[7, 7], [7, 7], [7], [7]]
        reports = [
            guide.records.report(str(r), prompt, [ended[r]], done=True)[0]
            for r, prompt in enumerate([[1, 2], [13, 2], [3, 2], [5, 2]])
        ]
        assert [report["steps"] for report in reports] == [2, 0, 1, 1]
        assert reports[1]["error"]["scorer"] == "bad"
        results.append((first, again, reports, guide.registry.faults))
    (first, again, *rest), (late_first, late_again, *late_rest) = results
    assert torch.equal(first, late_first)
    assert torch.equal(again, late_again)
    assert rest == late_rest


def test_a_grammar_that_forbids_the_stop_token_wins():
    guide, base = Guide({"bad": Broken("raise")}), logits(1)
    base[0, 0] = -torch.inf
    fused = base.clone()
    guide.step(fused, [(0, make([13], scorers={"bad": 1.0}))])
    assert torch.equal(fused, base)


def test_as_many_candidates_as_wanted_are_scored_but_a_trace_lists_the_first(monkeypatch):
    monkeypatch.setattr(outcome, "LISTED", 5)
    guide = Guide({"plain": FunctionScorer(plain)})
    row, base = make([4, 5], k=2000, mass=1.0, trace=True), logits(1)
    row.record_key = "r"
    guided = base.clone()
    guide.step(guided, [(0, row)])
    expected = reference(base[0], row, guide.registry.scorers)
    torch.testing.assert_close(guided[0], expected, atol=1e-4, rtol=1e-5)
    step = row.steps[2].trace
    assert step["candidates"] == base[0].argsort(descending=True)[:5].tolist()
    assert {len(step[name]) for name in ("logprobs", "guided_logprobs")} == {5}
    assert [len(step["scores"]["plain"]), step["tail"]] == [5, []]
    assert row.steps[2].scored == VOCAB


def test_single_candidates_need_no_scorer():
    def fail(ids):
        raise AssertionError("the scorer was called")

    guide, base = Guide({"plain": FunctionScorer(fail)}), torch.zeros(2, VOCAB)
    base[:, 3] = 30.0
    fused = base.clone()
    rows = [make([1], tail="truncate"), make([1], tail="mean")]
    for row in rows:
        row.record_key = "kept"
    guide.step(fused, list(enumerate(rows)))
    assert torch.isfinite(fused[0]).nonzero().tolist() == [[3]]
    torch.testing.assert_close(fused[1], base[1])
    assert rows[0].fault is None
    assert [row.steps[1].scored for row in rows] == [0, 0]


def generate(guide, row, record_key, steps, seed=0):
    """Greedy tokens of one row, as an engine would ask for them."""
    row.record_key = record_key
    prompt = row.prefix
    for i in range(steps):
        fused = logits(1, seed + i)
        guide.step(fused, [(0, row)])
        row.prefix = np.append(row.prefix, int(fused.argmax()))
    answer = row.prefix[len(prompt) :].tolist()
    row.prefix = row.prefix[:-1]  # the last token is never shown to the processor
    return answer


def test_final_scores_are_those_of_the_whole_sequence():
    """Whether the last token was scored when it was chosen, or had no rival."""
    for steps in range(1, 8):
        guide = Guide({"plain": FunctionScorer(plain)})
        row = make([4, 5], mass=0.5)
        answer = generate(guide, row, "key", steps)
        cached = row.scored.of("plain", np.array([4, 5, *answer]))
        [report] = guide.records.report("key", [4, 5], [answer], done=True)
        assert report["scores"]["plain"] == pytest.approx(plain([4, 5, *answer]))
        assert cached is None or cached == pytest.approx(report["scores"]["plain"])


def test_records_are_found_by_their_tokens():
    guide = Guide({"plain": FunctionScorer(plain)})
    rows = [make([4, 5], trace=True, tail="truncate") for _ in range(2)]
    answers = [generate(guide, row, "key", 5, seed=100 * r) for r, row in enumerate(rows)]
    assert answers[0] != answers[1]
    second, first = guide.records.report("key", [4, 5], answers[::-1], done=False)
    for row, report, answer in zip(rows, (first, second), answers, strict=True):
        assert report["kl"] == pytest.approx(sum(s.kl for s in row.steps.values()))
        assert report["steps"] == 5
        assert report["scores"]["plain"] == pytest.approx(plain([4, 5, *answer]))
        assert [t["token"] for t in report["trace"]] == answer
        for step in report["trace"]:
            chosen = step["candidates"].index(step["token"])
            assert step["guided_logprobs"][chosen] == max(step["guided_logprobs"])
            assert sum(np.exp(step["guided_logprobs"])) == pytest.approx(1, abs=1e-5)
        assert sum(t["kl"] for t in report["trace"]) == pytest.approx(report["kl"])
        [later] = guide.records.steps("key", [4, 5], [answer], [3])
        assert later == report["trace"][3:]
    assert guide.records.steps("key", [4, 5], [[1, 1, 1]], [0]) == [None]
    assert guide.records.report("key", [4, 5], [[1, 1, 1]], done=True) == [None]
    assert guide.records.report("key", [4, 5], answers, done=True) == [None, None]
    assert not guide.records


@pytest.mark.parametrize("beta", [0.001, 4.0])
def test_a_record_tells_what_cutting_the_tail_costs(beta):
    """−log π0(candidates) at every step, whatever β; all of the KL at β → 0."""
    guide = Guide({"plain": FunctionScorer(plain)})
    rows = [make([4, 5], beta=beta, k=5, mass=0.8, tail=tail) for tail in ("truncate", "mean")]
    answers = [generate(guide, row, row.params.tail, 6) for row in rows]
    [cut] = guide.records.report("truncate", [4, 5], answers[:1], done=True)
    [kept] = guide.records.report("mean", [4, 5], answers[1:], done=True)
    expected = 0.0
    for seed in range(6):
        base = logits(1, seed)
        [chosen] = select_reference(base, torch.tensor([5]), torch.tensor([0.8]))
        expected -= float(base[0].softmax(0)[chosen].sum().log())
    assert cut["kl_tail"] == pytest.approx(expected, rel=1e-4)
    assert (cut["kl"] - cut["kl_tail"] < 1e-4) == (beta < 1)
    assert kept["kl_tail"] == 0 <= kept["kl"]
    assert (kept["kl"] < 1e-4) == (beta < 1)


def test_a_preempted_row_finds_its_record():
    guide = Guide({"plain": FunctionScorer(plain)})
    answer = generate(guide, make([4, 5]), "whole", 6)
    first = make([4, 5])
    half = generate(guide, first, "halves", 3)
    resumed = make([4, 5])  # a new row, as the engine adds it again
    resumed.prefix = np.array([4, 5, *half])
    rest = generate(guide, resumed, "halves", 3, seed=3)
    assert [*half, *rest] == answer
    [whole] = guide.records.report("whole", [4, 5], [answer], done=True)
    [halves] = guide.records.report("halves", [4, 5], [answer], done=True)
    assert halves == whole
    assert halves["steps"] == 6


def test_unfetched_records_are_bounded(monkeypatch):
    monkeypatch.setattr("trimtab.records.MAX_RECORDS", 10)
    guide = Guide({"plain": FunctionScorer(plain)})
    for i in range(30):
        generate(guide, make([1]), f"r{i}", 1)
    assert list(guide.records) == [f"r{i}" for i in range(20, 30)]
