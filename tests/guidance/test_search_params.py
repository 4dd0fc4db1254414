"""The settings of a search, and how whole sequences are scored."""

import json
import warnings

import numpy as np
import pytest
import torch

from trimtab.errors import InvalidGuidance, ScorerFault
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.scorers import CompositeScorer, FunctionScorer
from trimtab.scorers.base import Scorer
from trimtab.search import Beam, BestOfN, Blockwise, Mcts, SearchParams, Smc, TextBlock
from trimtab.search.scoring import score_sequences
from trimtab_models.checkpoint import ScorerInfo

with warnings.catch_warnings():  # vLLM's own, as it is imported
    warnings.simplefilter("ignore")
    from trimtab.adapters.vllm.search import scored

GOOD = [
    ({"method": "best_of_n"}, BestOfN(n=16)),
    ({"method": "best_of_n", "n": 256}, BestOfN(n=256)),
    ({"method": "blockwise", "n": 4, "block": 16}, Blockwise(n=4, block=16)),
    ({"method": "beam", "width": 8, "expand": 8}, Beam(width=8, expand=8, block=8)),
    ({"method": "smc", "particles": 32, "threshold": 1}, Smc(particles=32, threshold=1.0)),
    ({"method": "mcts", "simulations": 0}, Mcts(simulations=0)),
    (
        {"method": "blockwise", "block": {"until": "\n\n", "tokens": 32}},
        Blockwise(block=TextBlock(until="\n\n", tokens=32)),
    ),
    ({"method": "smc", "block": {"until": "."}}, Smc(block=TextBlock(until=".", tokens=64))),
]
SECRET = "hunter2"
BAD = [
    ("best_of_n", "object"),
    ({}, "object"),
    ({"method": SECRET}, "methods are"),
    ({"method": ["beam"]}, "methods are"),
    ({"method": "best_of_n", "n": 0}, "n: "),
    ({"method": "best_of_n", "n": 257}, "n: "),
    ({"method": "best_of_n", "n": True}, "n: "),
    ({"method": "best_of_n", "n": SECRET}, "n: "),
    ({"method": "best_of_n", "particles": 4}, "fields are method, n"),
    ({"method": "blockwise", "block": 0}, "block: "),
    ({"method": "blockwise", "block": SECRET}, "block: "),
    ({"method": "beam", "block": True}, "block: "),
    ({"method": "beam", "block": {}}, "block: "),
    ({"method": "beam", "block": {"until": ""}}, "block: "),
    ({"method": "beam", "block": {"until": ["\n"]}}, "block: "),
    ({"method": "beam", "block": {"until": "x" * 101}}, "block: "),
    ({"method": "smc", "block": {"until": "\n", "tokens": 257}}, "block: "),
    ({"method": "smc", "block": {"until": "\n", SECRET: 3}}, "the fields until and tokens"),
    ({"method": "best_of_n", "block": {"until": "\n"}}, "unknown field"),
    ({"method": "beam", "width": 9, "expand": 8}, "width times expand"),
    ({"method": "smc", "threshold": 1.5}, "threshold: "),
    ({"method": "smc", "threshold": float("nan")}, "threshold: "),
    ({"method": "mcts", "simulations": 257}, "simulations: "),
    ({"method": "mcts", SECRET: 1}, "unknown field"),
]


@pytest.mark.parametrize(("fields", "params"), GOOD)
def test_parses(fields, params):
    assert SearchParams.parse(json.loads(json.dumps(fields))) == params


@pytest.mark.parametrize(("fields", "message"), BAD, ids=str)
def test_refuses(fields, message):
    with pytest.raises(InvalidGuidance) as error:
        SearchParams.parse(fields)
    assert message in error.value.message
    assert SECRET not in error.value.message
    assert error.value.param == "search"


@pytest.mark.parametrize(
    ("search", "guidance", "temperature", "param"),
    [
        (BestOfN(), {}, 0.0, "temperature"),
        (Smc(), {}, 0.0, "temperature"),
        (Mcts(), {"tail": "mean"}, 1.0, "tail"),
        (Mcts(), {"paper": "vas"}, 1.0, "tail"),
        (Beam(), {"on_error": "unguided"}, 1.0, "on_error"),
        (Beam(), {"trace": True}, 1.0, "trace"),
        (Beam(), {"kl_budget": 1.0}, 1.0, "kl_budget"),
        (Beam(), {"utility": {"a": {"cvar": 0.1}}}, 1.0, "utility"),
        (Smc(), {"floors": {"a": 1.0}, "beta": 0.0}, 1.0, "beta"),
    ],
)
def test_what_does_not_go_together(search, guidance, temperature, param):
    with pytest.raises(InvalidGuidance) as error:
        search.check(GuidanceParams(**guidance), temperature)
    assert error.value.param == param
    search.check(GuidanceParams(), 1.0)


def test_a_return_to_go_does_not_compare_answers():
    params = GuidanceParams(scorers={"whole": 1.0, "rest": 0.5})
    with pytest.raises(InvalidGuidance, match="'rest' knows the return to go") as error:
        Beam().check_scorers(params, {"rest"})
    assert error.value.param == "scorers"
    Beam().check_scorers(params, {"other"})
    Beam().check_scorers(GuidanceParams(scorers={"whole": 1.0, "rest": 0.0}), {"rest"})


def test_mcts_needs_no_temperature():
    Mcts().check(GuidanceParams(), 0.0)
    Mcts().check(GuidanceParams(tail="truncate"), 0.0)


class Telling(Scorer):
    """s = sum of the ids + strength; remembers its calls."""

    family = "function"

    def __init__(self):
        super().__init__(ScorerInfo(objective="x", mean=3.0, deviation=2.0))
        self.calls, self.tokens = [], 0

    @property
    def tokens_forwarded(self):
        return self.tokens

    def score(self, keys, prefixes, candidates, strengths, prompts=()):
        self.calls.append([list(keys), [len(c) for c in candidates]])
        self.tokens += sum(map(len, candidates))
        return torch.tensor(
            [
                float(np.sum(prefix) + v + strength)
                for prefix, group, strength in zip(prefixes, candidates, strengths, strict=True)
                for v in group
            ]
        )


SEQUENCES = [[5, 6, 1], [5, 7, 2], [5, 6, 4], [9, 9]]


def test_sequences_are_scored_by_prefix_at_their_strength():
    one, other = Telling(), FunctionScorer(lambda ids: float(len(ids)))
    guide = Guide({"one": one, "other": other})
    params = GuidanceParams(scorers={"one": 0.5, "other": -2.0}, beta=4.0)
    result = score_sequences(guide, params, SEQUENCES, [10, 11, 12, 13])
    sums = [sum(ids) + 4.0 * 0.5 for ids in SEQUENCES]
    lengths = [float(len(ids)) for ids in SEQUENCES]
    assert result["scores"] == {"one": sums, "other": lengths}
    expected = [0.5 * s - 2.0 * n for s, n in zip(sums, lengths, strict=True)]
    assert result["values"] == pytest.approx(expected)
    assert result["tokens"] == 4
    assert one.calls == [[[10, 11, 13], [2, 1, 1]]]  # two share a prefix, and its row


def test_normalised_values():
    guide = Guide({"one": Telling()})
    params = GuidanceParams(scorers={"one": 2.0}, beta=3.0, normalize=True)
    result = score_sequences(guide, params, [[1, 2]], [0])
    raw = 3 + 3.0 * 2.0 / 2.0  # the strength is over the deviation
    assert result["scores"]["one"] == [raw]
    assert result["values"] == pytest.approx([2.0 * (raw - 3.0) / 2.0])


def test_parts_of_a_composite_are_counted_once():
    one = Telling()
    guide = Guide({"one": one, "sum": CompositeScorer({"one": (one, 1.0)})})
    result = score_sequences(guide, GuidanceParams(scorers={"sum": 1.0}), [[1, 2], [1, 3]], [0, 1])
    assert result["tokens"] == 2


def test_tokens_are_shared_out_whole():
    result = {"values": [1.0, 2.0, 3.0], "scores": {"a": [1.0, 2.0, 3.0]}, "error": None}
    answers = scored({**result, "tokens": 8})
    assert [answer.scorer_tokens for answer in answers] == [3, 3, 2]
    assert [answer.scores for answer in answers] == [{"a": 1.0}, {"a": 2.0}, {"a": 3.0}]


@pytest.mark.parametrize("bad", [lambda ids: 1 / 0, lambda ids: float("nan")])
def test_a_scorer_that_fails_is_named(bad):
    guide = Guide({"bad": FunctionScorer(bad)})
    result = score_sequences(guide, GuidanceParams(scorers={"bad": 1.0}), SEQUENCES, range(4))
    with pytest.raises(ScorerFault, match="scorer 'bad' failed"):
        scored(result)
