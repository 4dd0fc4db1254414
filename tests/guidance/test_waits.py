"""How often a step waits for the device: once, whatever the rows and the scorers.

The device is pretended (pretended.py): every wait is counted, and the numbers are compared with a
step on the CPU. What a step did is noted at the next one; until then an engine has waited for its
tokens, so nobody waits for it.
"""

import numpy as np
import pytest
import torch

import pretended
from networks import LENGTH, VOCAB, configs
from trimtab import guide as guide_module
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers import (
    CompositeScorer,
    DistributionScorer,
    FunctionScorer,
    HeadScorer,
    LogRatioScorer,
    VocabularyScorer,
)
from trimtab.scorers.probe import ProbeScorer
from trimtab.scoring import attention, merging
from trimtab.scoring.backbone import Backbone
from trimtab.scoring.captured import FixedSteps
from trimtab.slots import Slots
from trimtab_models import probe
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.networks import scalar_head, vocabulary_head
from trimtab_models.transfers import ToHost

HIDDEN, ROWS, STEPS = 12, 5, 2
SUPPORT = {"support": (-1.0, 2.0)}


def backbone(moved, make=scalar_head, seed=0, **options):
    torch.manual_seed(seed)
    config = configs()["llama"]
    config.num_hidden_layers = 1
    model = make(config, **options)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    made = Backbone(model, max_length=LENGTH, pool_bytes=2**21, max_candidates=32)
    if moved:
        pretended.move(made.model)
        made.pool.k, made.pool.v = pretended.there(made.pool.k), pretended.there(made.pool.v)
        made.fixed = FixedSteps(made.network, made.pool, graphs=False)
    return made


def probe_scorer(moved, seed, **info):
    torch.manual_seed(seed)
    outputs = 5 if info else 1
    network = probe.Probe(probe.ProbeConfig(HIDDEN, rank=3, width=6, outputs=outputs)).eval()
    for part in (network.level, network.factors):
        torch.nn.init.normal_(part.weight)
    table = network.table(torch.randn(VOCAB, HIDDEN)).detach()
    if moved:
        pretended.move(network)
        table = pretended.there(table)
    return ProbeScorer(ScorerInfo(**info), network, table)


def vocabulary(moved, seed):
    info = ScorerInfo(family="vocabulary", alpha=0.5)
    return VocabularyScorer(info, backbone(moved, vocabulary_head, seed))


def composite(moved):
    head, one = HeadScorer(ScorerInfo(), backbone(moved)), probe_scorer(moved, 3, **SUPPORT)
    return CompositeScorer({"head": (head, 1.0), "probe": (one, -0.5)})


FAMILIES = {
    "head": lambda moved: {"head": HeadScorer(ScorerInfo(mean=0.3), backbone(moved))},
    "distribution": lambda moved: {
        "distribution": DistributionScorer(ScorerInfo(**SUPPORT), backbone(moved, bins=5))
    },
    "ahead": lambda moved: {
        "ahead": DistributionScorer(
            ScorerInfo(ahead=True, **SUPPORT), backbone(moved, bins=6 * VOCAB)
        )
    },
    "vocabulary": lambda moved: {"vocabulary": vocabulary(moved, 0)},
    "log_ratio": lambda moved: {
        "log_ratio": LogRatioScorer(vocabulary(moved, 0), vocabulary(moved, 1))
    },
    "number": lambda moved: {"number": probe_scorer(moved, 4)},
    "probe": lambda moved: {"probe": probe_scorer(moved, 0, **SUPPORT)},
    "probes": lambda moved: {f"probe{i}": probe_scorer(moved, i, **SUPPORT) for i in range(8)},
    "composite": lambda moved: {"composite": composite(moved)},
    "function": lambda moved: {"function": FunctionScorer(lambda ids: float(ids[-1] % 5))},
}


def rows_of(names, fields):
    rng = np.random.default_rng(0)
    weights = {name: 1.0 - 0.1 * i for i, name in enumerate(names)}
    own = [
        {"tail": "mean", "trace": True, "beta": 2.0},
        {"tail": "truncate", "mass": 0.8},
        {"k": 3, "mass": 1.0, "normalize": True},
        {"beta": -1.0},
    ]
    if fields.get("k") == "all" or "kl_budget" in fields:
        own = [{}] * 4
    return [
        Row(
            GuidanceParams.parse({"scorers": weights, **some, **fields}),
            8 + r,
            prefix=rng.integers(VOCAB, size=8 + r),
            record_key=str(r),
        )
        for r, some in enumerate(own)
    ]


def steps(made, fields, device=None, late=True):
    """The logits of some steps, their records, and the waits and uploads of the last step.

    One of the rows is not guided. The first steps read the prompts.
    """
    guide = Guide(made)
    guide.late = late and device is not None
    rows = rows_of(made, fields)
    generator = torch.Generator().manual_seed(1)
    out = []
    for _ in range(STEPS):
        logits = torch.randn(ROWS, VOCAB, generator=generator) * 2
        hidden = torch.randn(ROWS, HIDDEN, generator=generator)
        if device is not None:
            logits, hidden = pretended.there(logits), pretended.there(hidden)
            device.waits.clear(), device.uploads.clear()
        guide.step(logits, list(zip((0, 1, 3, 4), rows, strict=True)), hidden)
        costs = ([], 0) if device is None else (list(device.waits), len(device.uploads))
        out.append(logits if device is None else logits.cpu())
        for r, row in enumerate(rows):
            row.prefix = np.append(row.prefix, 5 + r)
    guide.catch_up()
    assert [row.fault for row in rows] == [None] * len(rows)
    records = [[step.kl for step in row.steps.values()] for row in rows]
    return torch.stack(out), torch.tensor(records), rows[0].steps[8].trace, costs


def costs_of(family, fields, monkeypatch, late=True):
    """The waits and uploads of a step, whose numbers equal a step's on the CPU."""
    with torch.inference_mode():
        expected, kl, trace, _ = steps(FAMILIES[family](False), fields)
        for module in (merging, attention):  # a kernel of CUDA's
            monkeypatch.setattr(module, "attend", merging.by_formula)
        with pretended.pretended(monkeypatch) as device:
            actual, own_kl, own_trace, costs = steps(FAMILIES[family](True), fields, device, late)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own_kl, kl, rtol=1e-4, atol=1e-5)
    assert (own_trace and own_trace["candidates"]) == (trace and trace["candidates"])
    return costs


def waits_of(family, fields, monkeypatch, late=True):
    waits, _ = costs_of(family, fields, monkeypatch, late)
    return waits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_waits_once(family, monkeypatch):
    """For the candidates, in one packed copy."""
    assert waits_of(family, {}, monkeypatch) == ["copy to the host"]


@pytest.mark.parametrize("family", ["probe", "vocabulary", "ahead"])
def test_a_step_over_whole_vocabularies_never_waits(family, monkeypatch):
    assert waits_of(family, {"k": "all", "mass": 1.0}, monkeypatch) == []


@pytest.mark.parametrize("family", ["probe", "distribution"])
def test_a_budget_reads_each_histogram_once(family, monkeypatch):
    """Strengths are planned on the host."""
    fields = {"kl_budget": 0.05, "tail": "mean"}
    assert waits_of(family, fields, monkeypatch) == ["copy to the host"] * 2


UPLOADS = {
    "head": 1,  # tokens and slots of the prefix pool
    "distribution": 2,  # these, and strengths with returns
    "ahead": 3,
    "vocabulary": 2,
    "log_ratio": 4,  # each scorer's
    "number": 1,  # candidates
    "probe": 2,
    "probes": 2,
    "composite": 3,
    "function": 1,  # scores
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_steady_step_uploads_only_what_scorers_read(family, monkeypatch):
    """The parameters of its rows are on the device."""
    assert costs_of(family, {}, monkeypatch)[1] == UPLOADS[family]


def test_parameters_that_are_written_again_are_counted(monkeypatch):
    """The control: the values of the rows' slots, the slots, and these with their places."""
    monkeypatch.setattr(Slots, "_known", lambda *_: False)
    # Once for all rows of the step, once for those that are guided together.
    assert costs_of("head", {}, monkeypatch)[1] == UPLOADS["head"] + 2 * 3


def test_an_engine_that_asks_for_faults_at_once_waits_for_them(monkeypatch):
    assert waits_of("probe", {}, monkeypatch, late=False) == ["copy to the host", "event"]


@pytest.mark.parametrize(
    "wait",
    [
        lambda bonus: bonus.sum().item(),
        lambda bonus: bonus.tolist(),
        lambda bonus: bonus.cpu(),
        lambda bonus: bonus[bonus > 0],
        lambda bonus: bonus.nonzero(),
        lambda bonus: bool(bonus.any()),
        lambda bonus: torch.zeros(3).to(bonus.device),
        lambda bonus: torch.tensor([1.0], device=bonus.device),
        lambda bonus: bonus[torch.tensor([0])],
        lambda bonus: ToHost([bonus]).read(),
    ],
)
def test_a_wait_is_counted(wait, monkeypatch):
    """The control: one more wait in a step."""
    plain = guide_module.fuse_

    def waits(logits, index, place, candidates, bonus, *rest):
        if isinstance(bonus, pretended.OnDevice):
            wait(bonus)
        plain(logits, index, place, candidates, bonus, *rest)

    monkeypatch.setattr(guide_module, "fuse_", waits)
    assert len(waits_of("probe", {}, monkeypatch)) == 2


def test_what_has_not_arrived_is_not_read(monkeypatch):
    """The control of asynchronous copies: they are read after a wait."""
    with pretended.pretended(monkeypatch) as device:
        numbers = pretended.there(torch.arange(3))
        copy = numbers.to("cpu", non_blocking=True)
        with pytest.raises(RuntimeError, match="has not arrived"):
            copy + 0
        assert device.waits == []
        numbers.sum().item()
        assert (copy + 0).tolist() == [0, 1, 2]
