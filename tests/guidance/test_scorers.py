"""Every family keeps the contract; loading refuses what it must."""

import numpy as np
import pytest
import torch

from networks import LENGTH, VOCAB, configs
from trimtab.config import GuidanceConfig, parse_scorer
from trimtab.errors import ScorerLoadError
from trimtab.loading import load_scorers
from trimtab.scorers import FunctionScorer, Scorer
from trimtab.testing import check_scorer
from trimtab_models.checkpoint import ScorerInfo, save
from trimtab_models.networks import scalar_head, vocabulary_head


def count_sevens(ids):
    return float(ids.count(7))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    for seed, (name, make, info) in enumerate(
        [
            ("value", scalar_head, ScorerInfo(mean=0.5, deviation=2.0)),
            ("q", vocabulary_head, ScorerInfo(family="vocabulary")),
            ("tuned", vocabulary_head, ScorerInfo(family="log_ratio", alpha=0.5)),
            ("untuned", vocabulary_head, ScorerInfo(family="log_ratio")),
        ]
    ):
        torch.manual_seed(seed)
        model = make(configs()["llama"])
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
        save(model, None, info, root / name)
    return root


def load(checkpoints, **scorers):
    config = GuidanceConfig.parse({"trimtab": {"scorers": scorers, "cache_bytes": 8 * 2**20}})
    return load_scorers(config, max_length=LENGTH - 1, vocab_size=VOCAB)


@pytest.fixture(scope="module")
def scorers(checkpoints):
    return load(
        checkpoints,
        mix={"path": "value:2+sevens:-1", "family": "composite"},
        value={"path": str(checkpoints / "value")},
        q={"path": str(checkpoints / "q")},
        alone={"path": str(checkpoints / "tuned")},
        pair={"path": str(checkpoints / "tuned"), "reference": str(checkpoints / "untuned")},
        sevens={"path": f"{__name__}:count_sevens", "family": "function"},
    )


@pytest.mark.parametrize("name", ["value", "q", "alone", "pair", "sevens", "mix"])
def test_contract(scorers, name):
    check_scorer(scorers[name], vocab_size=VOCAB)


class Leaky(Scorer):
    """Remembers: the contract must find it out."""

    family = "function"

    def __init__(self):
        super().__init__(ScorerInfo())
        self.seen = 0

    def score(self, keys, prefixes, candidates):
        self.seen += 1
        return torch.full((sum(map(len, candidates)),), float(self.seen))


class Batched(Leaky):
    def score(self, keys, prefixes, candidates):
        return torch.full((sum(map(len, candidates)),), float(len(keys)))


@pytest.mark.parametrize("broken", [Leaky, Batched])
def test_the_contract_finds_leaks(broken):
    with pytest.raises(AssertionError, match="must not depend on"):
        check_scorer(broken(), vocab_size=VOCAB)


def lm_logprobs(path, prefix):
    model = vocabulary_head(path)
    with torch.inference_mode():
        return model(torch.from_numpy(prefix)[None], use_cache=False).logits[0, -1]


def test_scores_are_the_formulas(scorers, checkpoints):
    prefix, candidates = np.arange(5, 15), np.array([7, 3, 50])
    score = {n: s.score([0], [prefix], [candidates]) for n, s in scorers.items()}
    q = lm_logprobs(checkpoints / "q", prefix)
    torch.testing.assert_close(score["q"], q[candidates], atol=1e-5, rtol=1e-5)
    tuned = lm_logprobs(checkpoints / "tuned", prefix).log_softmax(-1)[candidates]
    untuned = lm_logprobs(checkpoints / "untuned", prefix).log_softmax(-1)[candidates]
    torch.testing.assert_close(score["alone"], 0.5 * tuned, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(score["pair"], 0.5 * (tuned - untuned), atol=1e-5, rtol=1e-5)
    assert score["sevens"].tolist() == [2.0, 1.0, 1.0]
    torch.testing.assert_close(score["mix"], 2 * score["value"] - score["sevens"])


def test_functions_may_read_text():
    class Letters:
        def decode(self, ids):
            return "".join(chr(97 + i) for i in ids)

    scorer = FunctionScorer(lambda text: text.count("ab"), Letters())
    assert scorer.score([0], [np.array([0, 1, 0])], [np.array([1, 2])]).tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("scorer", "reason"),
    [
        ({"path": "nowhere/at-all"}, "neither a checkpoint"),
        ({"path": "json:nothing", "family": "function"}, "nothing"),
        ({"path": "count_sevens", "family": "function"}, "module:function"),
        ({"path": "a:1", "family": "composite"}, "part 'a'"),
    ],
)
def test_broken_scorers_are_refused(checkpoints, scorer, reason):
    with pytest.raises(ScorerLoadError, match=reason):
        load(checkpoints, x=scorer)


def test_damaged_checkpoints_are_refused(checkpoints, tmp_path):
    for name, damage in {"truncated": lambda b: b[: len(b) // 2], "empty": lambda b: b""}.items():
        broken = tmp_path / name
        broken.mkdir()
        for file in (checkpoints / "value").iterdir():
            data = file.read_bytes()
            data = damage(data) if file.suffix == ".safetensors" else data
            (broken / file.name).write_bytes(data)
        with pytest.raises(ScorerLoadError, match="cannot be loaded"):
            load(checkpoints, x={"path": str(broken)})


def test_another_vocabulary_is_refused(checkpoints):
    config = GuidanceConfig.parse(
        {"trimtab": {"scorers": {"v": {"path": str(checkpoints / "value")}}}}
    )
    with pytest.raises(ScorerLoadError, match="tokenizer"):
        load_scorers(config, max_length=64, vocab_size=VOCAB + 1)


@pytest.mark.parametrize(
    "text", ["", "a", "=x", "A=x", "a=", "a=x,y", "a=x,nope=1", "a=x,family=text5"]
)
def test_scorer_arguments_that_do_not_read(text):
    with pytest.raises(ScorerLoadError):
        parse_scorer(text)


def test_scorer_arguments():
    assert parse_scorer("kind=./x") == ("kind", {"path": "./x", "reads": "ids"})
    assert parse_scorer("g=x,family=log_ratio,alpha=0.5,reference=y")[1]["alpha"] == 0.5
