"""Every family keeps the contract; loading refuses what it must."""

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForTokenClassification

from networks import LENGTH, VOCAB, configs
from trimtab.config import GuidanceConfig, parse_scorer
from trimtab.errors import ScorerLoadError
from trimtab.loading import load_scorers, precision
from trimtab.scorers import FunctionScorer, Scorer
from trimtab.testing import check_scorer
from trimtab_models.checkpoint import ScorerInfo, save
from trimtab_models.networks import next_histograms, scalar_head, vocabulary_head
from trimtab_models.readout import soft_value, soft_value_at, soft_value_reference

C = 1.7
"""A strength."""


def count_sevens(ids):
    return float(ids.count(7))


def histogram(source):
    return scalar_head(source, bins=5)


def histograms(source):
    return scalar_head(source, bins=6 * source.vocab_size)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    for seed, (name, make, info) in enumerate(
        [
            ("value", scalar_head, ScorerInfo(mean=0.5, deviation=2.0)),
            ("chance", scalar_head, ScorerInfo(link="sigmoid")),
            ("log_chance", scalar_head, ScorerInfo(link="log_sigmoid")),
            ("returns", histogram, ScorerInfo(family="distribution", support=(-1.0, 3.0))),
            (
                "q_returns",
                histograms,
                ScorerInfo(family="distribution", support=(-1.0, 3.0), ahead=True),
            ),
            ("q", vocabulary_head, ScorerInfo(family="vocabulary")),
            ("tuned", vocabulary_head, ScorerInfo(family="log_ratio", alpha=0.5)),
            ("dpo", vocabulary_head, ScorerInfo(family="log_ratio", reference="../reference")),
            ("reference", vocabulary_head, ScorerInfo(family="log_ratio")),
        ]
    ):
        torch.manual_seed(seed)
        model = make(configs()["llama"])
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
        save(model, None, info, root / name)
    return root


def load(checkpoints, dtype="float32", **scorers):
    section = {"scorers": scorers, "cache_bytes": 8 * 2**20, "scorer_dtype": dtype}
    config = GuidanceConfig.parse({"trimtab": section})
    chosen = precision(config, "cpu", torch.float16)
    return load_scorers(config, max_length=LENGTH - 1, vocab_size=VOCAB, dtype=chosen)


@pytest.fixture(scope="module")
def scorers(checkpoints):
    return load(
        checkpoints,
        mix={"path": "value:2+sevens:-1", "family": "composite"},
        both={"path": "returns:0.5+value:-1", "family": "composite"},
        **{
            name: {"path": str(checkpoints / name)}
            for name in ("value", "chance", "log_chance", "returns", "q_returns", "q", "dpo")
        },
        alone={"path": str(checkpoints / "tuned")},
        pair={"path": str(checkpoints / "tuned"), "reference": str(checkpoints / "reference")},
        sevens={"path": f"{__name__}:count_sevens", "family": "function"},
    )


NAMES = [
    "value",
    "chance",
    "log_chance",
    "returns",
    "q_returns",
    "q",
    "alone",
    "pair",
    "dpo",
    "sevens",
]


@pytest.mark.parametrize("name", [*NAMES, "mix", "both"])
def test_contract(scorers, name):
    check_scorer(scorers[name], vocab_size=VOCAB)


@pytest.mark.parametrize("name", ["value", "returns", "q", "pair"])
def test_bfloat16_is_the_same_but_for_rounding(checkpoints, scorers, name):
    path = {"path": str(checkpoints / ("tuned" if name == "pair" else name))}
    if name == "pair":
        path["reference"] = str(checkpoints / "reference")
    half = load(checkpoints, "bfloat16", **{name: path})[name]
    rng = np.random.default_rng(0)
    prefixes = [rng.integers(VOCAB, size=n) for n in (3, 20, 9)]
    candidates = [rng.integers(VOCAB, size=n) for n in (8, 5, 8)]
    exact, rounded = (
        scorer.score([1, 2, 3], prefixes, candidates, [1.0] * 3) for scorer in (scorers[name], half)
    )
    assert not torch.equal(exact, rounded.float())
    assert float((exact - rounded).abs().max()) < 0.1 * float(exact.std())


def test_the_default_precision_is_the_bases_on_a_gpu():
    config = GuidanceConfig.parse({})
    assert precision(config, "cuda", torch.float16) == torch.float16
    assert precision(config, "cpu", torch.float16) == torch.float32
    with pytest.raises(ScorerLoadError, match="scorer_dtype"):
        GuidanceConfig.parse({"trimtab": {"scorer_dtype": "int8"}})


class Leaky(Scorer):
    """Remembers: the contract must find it out."""

    family = "function"

    def __init__(self):
        super().__init__(ScorerInfo())
        self.seen = 0

    def score(self, keys, prefixes, candidates, strengths, prompts=()):
        self.seen += 1
        return torch.full((sum(map(len, candidates)),), float(self.seen))


class Batched(Leaky):
    def score(self, keys, prefixes, candidates, strengths, prompts=()):
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
    score = {n: s.score([0], [prefix], [candidates], [C]) for n, s in scorers.items()}
    q = lm_logprobs(checkpoints / "q", prefix)
    torch.testing.assert_close(score["q"], q[candidates], atol=1e-5, rtol=1e-5)
    tuned = lm_logprobs(checkpoints / "tuned", prefix).log_softmax(-1)[candidates]
    reference = lm_logprobs(checkpoints / "reference", prefix).log_softmax(-1)[candidates]
    torch.testing.assert_close(score["alone"], 0.5 * tuned, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(score["pair"], 0.5 * (tuned - reference), atol=1e-5, rtol=1e-5)
    assert score["sevens"].tolist() == [2.0, 1.0, 1.0]
    torch.testing.assert_close(score["mix"], 2 * score["value"] - score["sevens"])
    dpo = lm_logprobs(checkpoints / "dpo", prefix).log_softmax(-1)[candidates]
    torch.testing.assert_close(score["dpo"], dpo - reference, atol=1e-5, rtol=1e-5)


def test_some_tokens_are_scored_as_all_are(scorers):
    """A vocabulary head reads only the candidates' part of its output, unless they are many."""
    rng, rows = np.random.default_rng(0), range(4)
    prefixes = [rng.integers(0, VOCAB, 9) for _ in rows]
    every = scorers["q"].score([*rows], prefixes, [np.arange(VOCAB)] * 4, [C] * 4).view(4, VOCAB)
    some = [rng.choice(VOCAB, n, replace=False) for n in (1, 6, 3, 9)]
    assert sum(map(len, some)) < VOCAB
    expected = torch.cat([row[group] for row, group in zip(every, some, strict=True)])
    scores = scorers["q"].score([*rows], prefixes, some, [C] * 4)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    [last] = scorers["q"].score([0], prefixes[:1], [np.array([VOCAB + 9])], [C])
    assert last == pytest.approx(float(every[0, -1]), abs=1e-5)


@pytest.mark.parametrize("name", ["q", "alone", "pair", "q_returns"])
def test_what_scores_the_whole_vocabulary_scores_all_tokens_as_some(scorers, name):
    """The vocabulary in its order takes a faster path."""
    scorer, order = scorers[name], np.random.default_rng(1).permutation(VOCAB)
    assert scorer.whole
    prefixes, every = [np.arange(3, 9), np.arange(20, 24)], np.arange(VOCAB)
    fast = scorer.score([0, 1], prefixes, [every] * 2, [C] * 2).view(2, VOCAB)
    slow = scorer.score([0, 1], prefixes, [order, order.copy()], [C] * 2).view(2, VOCAB)
    torch.testing.assert_close(fast[:, order], slow)


def head_outputs(path, prefix, candidates):
    """The network's output after each candidate, by transformers alone."""
    model = AutoModelForTokenClassification.from_pretrained(path)
    ids = torch.tensor([[*prefix, c] for c in candidates])
    with torch.inference_mode():
        return model(ids, use_cache=False).logits[:, -1]


def test_a_link_makes_the_score(scorers, checkpoints):
    prefix, candidates = np.arange(5, 15), np.array([7, 3, 50])
    for name, link in (("chance", torch.sigmoid), ("log_chance", lambda x: x.sigmoid().log())):
        score = scorers[name].score([0], [prefix], [candidates], [C])
        outputs = head_outputs(checkpoints / name, prefix, candidates)
        torch.testing.assert_close(score, link(outputs[:, 0]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("c", [1.7, -40.0, 1e-4, 0.0])
def test_a_distribution_is_scored_at_the_strength(scorers, checkpoints, c):
    prefix, candidates = np.arange(5, 15), np.array([7, 3, 50])
    score = scorers["returns"].score([0, 1], [prefix] * 2, [candidates] * 2, [c, -2.0])
    outputs = head_outputs(checkpoints / "returns", prefix, candidates)
    p = outputs.double().softmax(-1).tolist()
    expected = [soft_value_reference(q, [-1, 0, 1, 2, 3], s) for s in (c, -2) for q in p]
    torch.testing.assert_close(score, torch.tensor(expected), atol=1e-4, rtol=1e-4)
    assert len(set(score.tolist())) == 6
    ahead = scorers["q_returns"].score([0], [prefix], [candidates], [c])
    before = head_outputs(checkpoints / "q_returns", prefix[:-1], prefix[-1:])[0]
    p = next_histograms(before, VOCAB)[candidates].double().softmax(-1).tolist()
    expected = [soft_value_reference(q, [-1, 0, 1, 2, 3], c) for q in p]
    torch.testing.assert_close(ahead, torch.tensor(expected), atol=1e-4, rtol=1e-4)
    both = scorers["both"].score([0], [prefix], [candidates], [2 * c])
    value = scorers["value"].score([0], [prefix], [candidates], [0.0])
    torch.testing.assert_close(both, 0.5 * score[:3] - value)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    exponent=st.floats(-12, 3),
    sign=st.sampled_from([-1, 1]),
    low=st.floats(-20, 20),
    width=st.floats(0.01, 20),
)
def test_soft_values_equal_the_definition(seed, exponent, sign, low, width):
    """At every strength, the smallest included, to within float32 of the support's size."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(3, 11, generator=generator)
    returns = torch.linspace(low, low + width, 11)
    # s_c moves with the returns: counted from their middle, the definition stays in range.
    middle = low + width / 2
    offsets = (returns.double() - middle).tolist()
    c = sign * min(10.0**exponent, 600 / width)
    strengths = torch.tensor([c, 0.0, -c])
    # In the smallest, the definition is all rounding: there its limit is taken.
    sound = strengths.double().where(strengths.abs() * width > 1e-7, 0.0).tolist()
    histograms = logits.double().softmax(-1).tolist()
    expected = [
        middle + soft_value_reference(p, offsets, s) for p, s in zip(histograms, sound, strict=True)
    ]
    actual = soft_value(logits, returns, strengths)
    error = 1e-6 * (abs(low) + width)
    torch.testing.assert_close(actual, torch.tensor(expected), atol=error, rtol=1e-6)
    for row, strength in enumerate(strengths.tolist()):
        many = soft_value_at(logits.T, returns, strength)  # of which one is at its own strength
        torch.testing.assert_close(many[row], torch.tensor(expected[row]), atol=error, rtol=1e-6)


def test_a_soft_value_grows_from_the_mean():
    """E[R] + c·Var[R]/2 for a small c: 0 and 1 with even odds, so c/8 above one half."""
    strengths = torch.tensor([0.0, 1e-30, 1e-8, 1e-5, 1e-3, 0.02, -0.02])
    values = soft_value(torch.zeros(7, 2), torch.tensor([0.0, 1.0]), strengths)
    torch.testing.assert_close(values, 0.5 + strengths / 8, atol=2e-7, rtol=0)
    even = [
        soft_value_at(torch.zeros(2, 1), torch.tensor([0.0, 1.0]), c) for c in strengths.tolist()
    ]
    torch.testing.assert_close(torch.cat(even), 0.5 + strengths / 8, atol=2e-7, rtol=0)
    extremes = soft_value(torch.zeros(2, 2), torch.tensor([0.0, 1.0]), torch.tensor([1e8, -1e8]))
    torch.testing.assert_close(extremes, torch.tensor([1.0, 0.0]), atol=1e-6, rtol=0)


def test_a_distribution_without_support_is_refused(tmp_path):
    path = save(histogram(configs()["llama"]), None, ScorerInfo(family="distribution"), tmp_path)
    with pytest.raises(ScorerLoadError, match="support"):
        load(tmp_path, x={"path": str(path)})


def test_functions_may_read_text():
    class Letters:
        def decode(self, ids):
            return "".join(chr(97 + i) for i in ids)

    scorer = FunctionScorer(lambda text: text.count("ab"), Letters())
    assert scorer.score([0], [np.array([0, 1, 0])], [np.array([1, 2])], [1.0]).tolist() == [
        2.0,
        1.0,
    ]


@pytest.mark.parametrize(
    ("scorer", "reason"),
    [
        ({"path": "nowhere/at-all"}, "neither a checkpoint"),
        ({"path": "json:nothing", "family": "function"}, "nothing"),
        ({"path": "count_sevens", "family": "function"}, "module:function"),
        ({"path": "a:1", "family": "composite"}, "part 'a'"),
    ],
)
def test_broken_scorers_are_refused(checkpoints, scorer, reason, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # or it tries for long
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


def test_a_damaged_configuration_is_refused_by_name(checkpoints, tmp_path):
    for name, change in ("unreadable", "{"), ("merely changed", " "):
        broken = tmp_path / name
        shutil.copytree(checkpoints / "value", broken)
        with (broken / "config.json").open("a") as file:
            file.write(change)
        with pytest.raises(ScorerLoadError, match=r"config\.json"):
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
    assert parse_scorer("kind=./x") == ("kind", {"path": "./x"})
    assert parse_scorer("g=x,family=log_ratio,alpha=0.5,reference=y")[1]["alpha"] == 0.5


@pytest.mark.parametrize("raised", ["SystemExit(1)", "GeneratorExit"])
def test_a_module_that_exits_when_it_is_imported_does_not_load(tmp_path, monkeypatch, raised):
    name = f"exits_{len(raised)}"
    (tmp_path / f"{name}.py").write_text(f"raise {raised}\n")
    monkeypatch.syspath_prepend(tmp_path)
    scorers = {"bad": {"path": f"{name}:f", "family": "function"}}
    config = GuidanceConfig.parse({"trimtab": {"scorers": scorers}})
    with pytest.raises(ScorerLoadError, match=r"cannot be imported \(\w*Exit\)"):
        load_scorers(config, max_length=8, vocab_size=9)
