"""A family from outside the project, in one file: this one."""

import numpy as np
import pytest
import torch

from networks import VOCAB, configs
from trimtab.config import GuidanceConfig, parse_scorer
from trimtab.errors import ScorerLoadError
from trimtab.loading import load_scorers, precheck
from trimtab.scorers import FAMILIES, NetworkScorer, Scorer
from trimtab.testing import check_scorer
from trimtab_models.checkpoint import ScorerInfo, save
from trimtab_models.networks import scalar_head

SHARED = {"max_length": 64, "vocab_size": VOCAB}


class Prefers(Scorer):
    """s(prefix + v) = 1 if v is the token that the path names, else 0."""

    family = "prefers"

    def __init__(self, token):
        super().__init__(ScorerInfo(objective="none"))
        self.token = token

    @classmethod
    def load(cls, spec, loader):
        if not spec.path.isdecimal():
            raise ScorerLoadError("its path must be a token id")
        return cls(int(spec.path))

    def score(self, keys, prefixes, candidates, strengths, prompts=()):
        return torch.from_numpy(np.concatenate(candidates) == self.token).float()


class Unfinished(Prefers):
    """Its constructor forgets the base class's."""

    def __init__(self, token):
        self.token = token


class Twice(NetworkScorer):
    """Two times what a head scorer says, to show a family that is a network."""

    family = "twice"
    network = "head"

    def score(self, keys, prefixes, candidates, strengths, prompts=()):
        hidden = self.backbone.hidden(keys, prefixes, candidates, prompts)
        return 2 * self.backbone.head(hidden)[:, 0].float()


def config(**scorers):
    return GuidanceConfig(scorers=scorers)


def test_a_class_of_ones_own_is_a_family():
    name, spec = parse_scorer(f"seven=7,family={__name__}:Prefers")
    settings = config(**{name: spec})
    precheck(settings)
    scorer = load_scorers(settings, **SHARED)["seven"]
    assert isinstance(scorer, Scorer)
    assert scorer.family == "prefers"
    check_scorer(scorer, vocab_size=VOCAB)
    scores = scorer.score([1], [np.array([3])], [np.array([6, 7, 8])], [1.0])
    assert scores.tolist() == [0, 1, 0]


def test_it_may_be_a_network_and_a_part(tmp_path):
    path = save(scalar_head(configs()["llama"]), None, ScorerInfo(mean=0.5), tmp_path / "head")
    scorers = load_scorers(
        config(
            plain={"path": str(path)},
            own={"path": str(path), "family": f"{__name__}:Twice"},
            mix={"path": "own:1+plain:-2", "family": "composite"},
        ),
        **SHARED,
    )
    check_scorer(scorers["own"], vocab_size=VOCAB)
    assert scorers["own"].info.mean == 0.5, "its checkpoint says what it is"
    row = [1], [np.array([3, 4])], [np.array([6, 7, 8])], [1.0]
    assert scorers["own"].backbone.pool.size == scorers["plain"].backbone.pool.size
    torch.testing.assert_close(scorers["mix"].score(*row), torch.zeros(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("nothing", "there is no family 'nothing'; the families are head, distribution"),
        ("no.such:Class", "cannot be imported: there is no module no; install it"),
        (f"{__name__}:Nobody", f"cannot be imported: {__name__} has no Nobody"),
        (f"{__name__}:config", "not a subclass of trimtab.scorers.Scorer"),
        ("json:JSONDecoder", "not a subclass of trimtab.scorers.Scorer"),
    ],
)
def test_what_is_no_family_is_refused(family, why):
    settings = config(own={"path": "7", "family": family})
    for refuse in (precheck, lambda settings: load_scorers(settings, **SHARED)):
        with pytest.raises(ScorerLoadError, match=why):
            refuse(settings)


def test_a_family_that_forgets_its_base_class_is_refused():
    with pytest.raises(ScorerLoadError, match=r"Unfinished.load returned no scorer with a Scorer"):
        load_scorers(config(own={"path": "7", "family": f"{__name__}:Unfinished"}), **SHARED)


def test_a_name_that_can_be_no_family_is_refused():
    for name in ("own_family.Shouting", "my-family:Class", "a:b:c"):
        with pytest.raises(ScorerLoadError, match="the name of a family, or"):
            GuidanceConfig.parse({"trimtab": {"scorers": {"x": {"path": "7", "family": name}}}})


def test_its_own_refusals_are_reported():
    with pytest.raises(ScorerLoadError, match="its path must be a token id"):
        load_scorers(config(own={"path": "x", "family": f"{__name__}:Prefers"}), **SHARED)


def test_families_say_what_they_are():
    assert {name for name, family in FAMILIES.items() if family.hot} == {
        "head",
        "distribution",
        "vocabulary",
        "log_ratio",
        "probe",
    }
    assert [name for name, family in FAMILIES.items() if family.distributional] == ["distribution"]
