"""Scorers that are scored together give the scores, and the faults, of each alone."""

import numpy as np
import pytest
import torch

from networks import VOCAB
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers import FunctionScorer
from trimtab.scorers.probe import ProbeScorer
from trimtab_models import probe
from trimtab_models.checkpoint import ScorerInfo

HIDDEN = 12


def made(seed, rank=3, **info):
    torch.manual_seed(seed)
    config = probe.ProbeConfig(HIDDEN, rank=rank, width=6, outputs=5 if "support" in info else 1)
    network = probe.Probe(config).eval()
    for part in (network.level, network.factors):
        torch.nn.init.normal_(part.weight)
    return ProbeScorer(ScorerInfo(**info), network, network.table(torch.randn(VOCAB, HIDDEN)))


def scorers():
    wide, narrow = {"support": (-1.0, 2.0), "mean": 0.3}, {"support": (0.0, 1.0)}
    return {
        **{f"wide{i}": made(i, **wide) for i in range(3)},
        "plain": FunctionScorer(lambda ids: float(ids[-1] % 5)),
        **{f"narrow{i}": made(i, **narrow) for i in range(3, 5)},
        "ranked": made(5, rank=2, **wide),
        "number": made(6, link="sigmoid"),
    }


@pytest.fixture
def stacked(monkeypatch):
    """How many probes were scored by each call for several."""
    sizes, plain = [], ProbeScorer.score_stack

    def counted(self, others, *rest):
        sizes.append(1 + len(others))
        return plain(self, others, *rest)

    monkeypatch.setattr(ProbeScorer, "score_stack", counted)
    return sizes


def steps(guide, names, count=3):
    """Logits and traces of some steps; each row uses the scorers that it names."""
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    rows = [
        Row(
            GuidanceParams.parse(
                {"scorers": dict.fromkeys(own, 0.7), "beta": 2.0 + r, "trace": True}
                | ({"tail": "mean", "normalize": True} if r % 2 else {"mass": 0.9})
            ),
            4 + r,
            prefix=rng.integers(VOCAB, size=4 + r),
            record_key=str(r),
        )
        for r, own in enumerate(names)
    ]
    out = []
    for _ in range(count):
        logits = torch.randn(len(rows), VOCAB, generator=generator) * 2
        hidden = torch.randn(len(rows), HIDDEN, generator=generator)
        guide.step(logits, list(enumerate(rows)), hidden)
        out.append(logits)
        for row in rows:
            row.prefix = np.append(row.prefix, 7)
    return torch.stack(out), rows


ALL = list(scorers())


@pytest.mark.parametrize(
    ("names", "sizes"),
    [
        ([ALL] * 4, [3, 2]),
        ([ALL, ALL[:3], ALL, ALL[1:]], [2, 2]),  # wide0 has other rows than wide1 and wide2
        ([["wide0"], ["wide1"], ["wide0", "wide1"]], []),
    ],
)
def test_together_as_alone(names, sizes, stacked, monkeypatch):
    with torch.inference_mode():
        together, rows = steps(Guide(scorers()), names)
        assert stacked == sizes * 3
        monkeypatch.setattr(ProbeScorer, "stacks", None)
        alone, own = steps(Guide(scorers()), names)
    assert len(stacked) == len(sizes) * 3
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    for row, other in zip(rows, own, strict=True):
        assert row.fault is None
        for at, step in row.steps.items():
            scores, expected = step.trace["scores"], other.steps[at].trace["scores"]
            assert scores.keys() == expected.keys()
            for name, values in scores.items():
                assert values == pytest.approx(expected[name], abs=1e-5)
        last = np.append(row.prefix[:-1], row.scored.tokens[0])
        for name in row.weights:
            expected = other.scored.of(name, last)
            assert row.scored.of(name, last) == pytest.approx(expected, abs=1e-5)


def broken(scorer, how):
    """The scorer, which now fails for every row."""
    if how == "raises":
        scorer.vectors = torch.zeros(0, 3)
    else:
        scorer.network.level.weight.data.fill_(torch.nan)
    return scorer


@pytest.mark.parametrize("how", ["raises", "nan"])
def test_a_fault_stays_with_its_scorer(how, stacked):
    made = scorers()
    broken(made["wide1"], how)
    with torch.inference_mode():
        names = [["wide0", "wide1", "wide2"]] * 2
        guided, rows = steps(Guide(made), names, count=1)
    assert [row.fault.scorer for row in rows] == ["wide1"] * 2
    base = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0)) * 2
    assert torch.equal(guided[0], base), "they have no stop token, so they stay unguided"
    assert stacked == [3]
    with torch.inference_mode():
        _, rows = steps(Guide(made), [["wide0", "wide2"]])
    assert [row.fault for row in rows] == [None]


def test_a_suspended_scorer_is_called_alone(stacked):
    guide = Guide(scorers())
    status = guide.registry.calls.status(guide.registry.scorers["wide1"])
    status.strikes.extend([float("inf")] * 3)
    with torch.inference_mode():
        _, [row] = steps(guide, [["wide0", "wide1", "wide2"]], count=1)
    assert not stacked
    assert row.fault.scorer == "wide1"
    assert "suspended" in row.fault.message
