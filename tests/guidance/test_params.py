import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import InvalidGuidance, UnknownScorer
from trimtab.params import FIELDS, MAX_K, PAPERS, GuidanceParams
from trimtab.xargs import from_xargs, to_xargs

names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,63}", fullmatch=True)
weights = st.floats(-1000, 1000)
utilities = st.just("mean") | st.dictionaries(
    st.sampled_from(["target", "at_least", "at_most"]), weights, min_size=1, max_size=1
)
guidance = st.fixed_dictionaries(
    {},
    optional={
        "scorers": st.dictionaries(names, weights, min_size=1, max_size=8),
        "floors": st.dictionaries(names, weights, min_size=1, max_size=8),
        "utility": st.dictionaries(names, utilities, min_size=1, max_size=8),
        "caution": st.dictionaries(names, st.floats(0, 100), min_size=1, max_size=8),
        "beta": st.floats(-100, 100) | st.integers(-100, 100),
        "paper": st.sampled_from(list(PAPERS)),
        "k": st.integers(1, MAX_K),
        "mass": st.floats(0, 1, exclude_min=True),
        "tail": st.sampled_from(["truncate", "mean"]),
        "normalize": st.booleans(),
        "on_error": st.sampled_from(["fail", "unguided"]),
        "trace": st.booleans(),
    },
)


@given(guidance, st.dictionaries(names, weights, min_size=1, max_size=8))
def test_all_three_carriers_say_the_same(fields, ceilings):
    if "floors" in fields:
        fields.pop("utility", None)
        fields["ceilings"] = {name: floor + 1 for name, floor in fields["floors"].items()}
    else:
        fields["ceilings"] = ceilings
    nested = GuidanceParams.parse(fields)
    assert GuidanceParams.parse(json.loads(json.dumps(fields))) == nested
    flat = to_xargs(nested)
    assert all(isinstance(v, (str, int, float)) and not isinstance(v, bool) for v in flat.values())
    assert from_xargs(json.loads(json.dumps(flat))) == nested
    assert from_xargs({"session_id": "x", **flat}) == nested


def test_defaults_are_the_design():
    assert GuidanceParams().model_dump() == {
        "scorers": None,
        "beta": 1.0,
        "kl_budget": None,
        "floors": None,
        "ceilings": None,
        "utility": None,
        "caution": None,
        "principles": None,
        "negative_prompt": None,
        "paper": None,
        "k": 16,
        "mass": 0.98,
        "tail": "mean",
        "normalize": False,
        "on_error": "fail",
        "trace": False,
    }


@pytest.mark.parametrize(
    ("paper", "candidates"),
    [("args", (10, 1, "truncate")), ("pargs", (10, 1, "truncate")), ("vas", (20, 1, "mean"))],
)
def test_a_paper_stands_for_its_rule_unless_a_field_says_otherwise(paper, candidates):
    def rule(params):
        return params.k, params.mass, params.tail

    assert rule(GuidanceParams.parse({"paper": paper})) == candidates
    assert rule(from_xargs({"trimtab_paper": paper})) == candidates
    own = {"k": 32, "mass": 0.99}  # these are fields like any other, not what is left out
    assert rule(GuidanceParams.parse({"paper": paper, **own})) == (32, 0.99, candidates[2])
    tail = {"trimtab_paper": paper, "trimtab_tail": "mean"}
    assert rule(from_xargs(tail)) == (*candidates[:2], "mean")


@pytest.mark.parametrize("extra", [None, {}, {"session_id": "x"}, {"trimtab_record": "x"}])
def test_no_guidance_is_none(extra):
    assert from_xargs(extra) is None


SECRET = "hunter2-" * 20
BAD = [
    *(
        {"beta": b}
        for b in [math.nan, math.inf, -math.inf, 1e308, 101, "0.5", True, None, [], 10**400]
    ),
    *({"k": k} for k in [0, -1, MAX_K + 1, 1.5, "5", 2**63, True, None]),
    *({"mass": m} for m in [0, -0.1, 1.01, math.nan, "1", None]),
    *({"tail": t} for t in ["cut", "", None, 1]),
    *({"paper": p} for p in ["ppo", "", 1, ["vas"], SECRET]),
    {"paper": "vas", "k": 0},
    {"normalize": 1},
    {"normalize": "true"},
    {"on_error": "ignore"},
    {"trace": "yes"},
    *(
        {"scorers": s}
        for s in [
            {},
            [],
            "sentiment",
            {"": 1},
            {"../x": 1},
            {"a\0b": 1},
            {"A": 1},
            {"é": 1},
            {"x" * 65: 1},
            {"a\n": 1},
            {"\ud800": 1},
            {"a": "1"},
            {"a": None},
            {"a": math.nan},
            {"a": 1e9},
            {str(i): 1 for i in range(9)},
            {str(i): 1 for i in range(100_000)},
        ]
    ),
    *(
        {"caution": c}
        for c in ({}, [], 1, "a", {"a": -0.1}, {"a": 101}, {"a": None}, {"a": True}, {SECRET: 1})
    ),
    {"unknown": 1},
    {SECRET: 1},
    {"beta": SECRET},
    {"tail": SECRET},
    [],
    "beta",
    None,
    1,
]


@pytest.mark.parametrize("fields", BAD, ids=lambda f: ascii(f)[:30])
def test_bad_fields_are_refused_and_never_echoed(fields):
    with pytest.raises(InvalidGuidance) as caught:
        GuidanceParams.parse(fields)
    assert "hunter2" not in caught.value.message
    assert len(caught.value.message) < 700
    body = caught.value.body()["error"]
    assert body["type"] == "invalid_request_error"
    assert body["param"] in {"guidance", *FIELDS}
    json.dumps(caught.value.body()).encode()


@pytest.mark.parametrize(
    "flat",
    [
        {"trimtab_beta": "4"},
        {"trimtab_scorers": "a=b"},
        {"trimtab_scorers": "a=1,a=2"},
        {"trimtab_scorers": "a=nan"},
        {"trimtab_scorers": ",".join("abcdefghij")},
        {"trimtab_scorers": ["a"]},
        {"trimtab_trace": 2},
        {"trimtab_nonsense": 1},
        {"trimtab_caution": "a"},
        {"trimtab_caution": "a=-1"},
        {"trimtab_caution": 1},
    ],
    ids=str,
)
def test_bad_flat_fields_are_refused(flat):
    with pytest.raises(InvalidGuidance):
        from_xargs(flat)


def test_bare_names_have_weight_one():
    params = from_xargs({"trimtab_scorers": "kindness,brevity=-2"})
    assert params.scorers == {"kindness": 1.0, "brevity": -2.0}


def test_scorers_are_resolved():
    served = ["a", "b"]
    assert GuidanceParams().resolve(served).scorers == {"a": 1.0, "b": 1.0}
    assert GuidanceParams().resolve(served, {"a": 2.0}).scorers == {"a": 2.0}
    named = GuidanceParams(scorers={"b": -1.0})
    assert named.resolve(served, {"a": 2.0}).scorers == {"b": -1.0}
    with pytest.raises(UnknownScorer) as caught:
        GuidanceParams(scorers={"c": 1.0}).resolve(served)
    assert caught.value.status == 404
