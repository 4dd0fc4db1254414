"""An ensemble of heads is one scorer: mean − λ·spread, with λ of each request."""

import numpy as np
import pytest
import torch

from networks import LENGTH, VOCAB, configs
from trimtab.config import GuidanceConfig
from trimtab.errors import InvalidGuidance, ScorerLoadError, UnknownScorer
from trimtab.guide import Guide
from trimtab.loading import load_scorers
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.testing import check_scorer
from trimtab_models import networks
from trimtab_models.checkpoint import ScorerInfo, save
from trimtab_models.readout import LINKS, cautious

HEADS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("ensembles")
    torch.manual_seed(3)
    many = networks.build("scalar", configs()["llama"], bins=HEADS)
    torch.nn.init.normal_(networks.split(many)[1].weight, std=0.15)
    one = networks.scalar_head(configs()["llama"])
    save(many, None, ScorerInfo(heads=HEADS, deviation=2.0), root / "many")
    save(many, None, ScorerInfo(heads=HEADS, link="log_sigmoid"), root / "chances")
    save(many, None, ScorerInfo(), root / "labels")
    save(one, None, ScorerInfo(), root / "one")
    return root


def load(folder, **paths):
    section = {"scorers": {n: {"path": str(folder / p)} for n, p in paths.items()}}
    config = GuidanceConfig.parse({"trimtab": {**section, "cache_bytes": 8 * 2**20}})
    return load_scorers(config, max_length=LENGTH - 1, vocab_size=VOCAB)


@pytest.fixture(scope="module")
def scorers(folder):
    return load(folder, many="many", chances="chances", one="one")


def by_hand(folder, path, text, size):
    """The score of one text, from the whole network."""
    model, info = networks.scalar_head(folder / path, bins=HEADS), path
    with torch.no_grad():
        values = model(input_ids=torch.tensor([text])).logits[0, -1]  # [heads]
    values = LINKS["log_sigmoid" if info == "chances" else "identity"](values).tolist()
    return np.mean(values) - size * np.std(values, ddof=1)


def test_heads_begin_at_different_weights():
    weight = networks.split(networks.build("scalar", configs()["llama"], bins=HEADS))[1].weight
    unit = torch.nn.functional.normalize(weight.detach(), dim=1)
    assert weight.shape == (HEADS, 64)
    assert (unit @ unit.T - torch.eye(HEADS)).abs().max() < 0.6


@pytest.mark.parametrize("name", ["many", "chances"])
def test_the_score_is_the_mean_less_the_spread(folder, scorers, name):
    random = np.random.default_rng(5)
    prefixes = [random.integers(1, VOCAB, n) for n in (4, 9, 6)]
    candidates = [random.choice(VOCAB, n, replace=False) for n in (3, 5, 1)]
    sizes = [0.0, 1.5, 3.0]
    got = scorers[name].score([1, 2, 3], prefixes, candidates, [0.0] * 3, cautions=sizes)
    expected = [
        by_hand(folder, name, [*prefix, token], size)
        for prefix, group, size in zip(prefixes, candidates, sizes, strict=True)
        for token in group
    ]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-4)
    mean = scorers[name].score([1, 2, 3], prefixes, candidates, [0.0] * 3)
    zero = scorers[name].score([1, 2, 3], prefixes, candidates, [0.0] * 3, cautions=[0.0] * 3)
    assert torch.equal(mean, zero)
    assert (mean - got).min() >= 0


def test_the_contract_and_what_is_listed(folder, scorers):
    check_scorer(scorers["many"], vocab_size=VOCAB)
    assert [scorers[name].ensemble for name in scorers] == [True, True, False]
    with pytest.raises(ScorerLoadError, match=rf"\[{HEADS}\] in the file"):
        load(folder, labels="labels")


def test_caution_of_one_head_is_its_definition():
    values = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    np.testing.assert_allclose(cautious(values, torch.tensor([2.0, 5.0])), [2 - 2 * 2**0.5, 2])


def make(prefix, **fields):
    row = Row(GuidanceParams.parse(fields), len(prefix), record_key="r")
    row.prefix = np.array(prefix)
    return row


def test_rows_of_a_step_have_their_own_caution(folder, scorers):
    """As fused by hand; without caution, and with λ = 0, bit for bit the mean's."""
    guide = Guide(scorers)
    base = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(1))
    fields = {"scorers": {"many": 1.0}, "beta": 2.0, "k": 5, "mass": 1.0, "tail": "truncate"}
    rows = [
        make([5, 6, 7 + i], **fields, **more)
        for i, more in enumerate(({}, {"caution": {"many": 0.0}}, {"caution": {"many": 2.0}}))
    ]
    logits = base.clone()
    guide.step(logits, list(enumerate(rows)))
    for i, size in enumerate((0.0, 0.0, 2.0)):
        order = base[i].topk(5).indices.tolist()
        for token in order:
            bonus = 2.0 * by_hand(folder, "many", [5, 6, 7 + i, token], size)
            assert float(logits[i, token]) == pytest.approx(float(base[i, token]) + bonus, abs=1e-3)
    alone = base.clone()
    guide.step(alone[1:2], [(0, make([5, 6, 8], **fields))])
    assert torch.equal(alone[1], logits[1])


def test_a_kl_budget_goes_with_caution(scorers):
    fields = {"scorers": {"many": 1.0}, "kl_budget": 2.0, "k": 5, "mass": 1.0}
    base = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1))
    outcomes = []
    for more in ({}, {"caution": {"many": 5.0}}):
        logits = base.clone()
        row = make([5, 6, 7], **fields, **more)
        row.max_tokens = 4  # the budget is spread over them
        Guide(scorers).step(logits, [(0, row)])
        outcomes.append(logits)
    assert not torch.equal(*outcomes)


def test_the_record_has_the_spread(folder, scorers):
    guide = Guide(scorers)
    fields = {"scorers": {"many": 1.0, "one": 1.0}, "beta": 1.0, "caution": {"many": 2.0}}
    row = make([5, 6, 7], **fields)
    guide.step(torch.zeros(1, VOCAB), [(0, row)])
    [record] = guide.records.report("r", [5, 6, 7], [[9]], True)
    mean, less = (by_hand(folder, "many", [5, 6, 7, 9], size) for size in (0.0, 2.0))
    assert record["scores"]["many"] == pytest.approx(less, abs=1e-4)
    assert record["spread"] == {"many": pytest.approx((mean - less) / 2, abs=1e-4)}
    plain = make([5, 6, 7], scorers={"many": 1.0})
    guide.step(torch.zeros(1, VOCAB), [(0, plain)])
    [record] = guide.records.report("r", [5, 6, 7], [[9]], True)
    assert "spread" not in record


def test_caution_is_refused_where_it_would_do_nothing(scorers):
    served = dict(scorers)

    def resolved(**fields):
        return GuidanceParams.parse(fields).resolve(served)

    assert resolved(caution={"many": 1}, scorers={"many": 1}).caution == {"many": 1.0}
    assert resolved(caution={"many": 1}).caution == {"many": 1.0}
    for fields, text in (
        ({"caution": {"one": 1}}, "'one' has one head"),
        ({"caution": {"many": 1}, "scorers": {"one": 1}}, "does not use"),
        ({"caution": {"nobody": 1}, "scorers": {"one": 1}}, "does not use"),
    ):
        with pytest.raises(InvalidGuidance, match=text) as refused:
            resolved(**fields)
        assert refused.value.param == "caution"
    with pytest.raises(UnknownScorer):
        resolved(scorers={"nobody": 1}, caution={"nobody": 1})
