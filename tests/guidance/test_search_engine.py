"""Searches on real engines: the offline one, and the served one beside it."""

from pathlib import Path

import pytest
from conftest import json_lines

HERE = Path(__file__).parent

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def checks():
    return json_lines(HERE / "search_engine.py")


def the(checks, name):
    return next(line for line in checks if line["check"] == name)


def test_best_of_n_is_the_best_of_n_draws(checks):
    check = the(checks, "best of n")
    assert check["equal"] == 4
    assert check["values"] < 1e-4
    assert check["drawn"]


def test_mcts_without_simulations_is_greedy_guidance(checks):
    check = the(checks, "greedy")
    assert check["equal"] == 4
    assert check["moved"] > 0, "guidance must have done something"


def test_every_scorer_token_is_counted(checks):
    """What plain draws are scored with: exactly what went through the scorers' networks."""
    lines = [line for line in checks if line["check"] == "method"]
    assert len(lines) == 5
    for line in lines:
        assert line["counted"] == line["spent"] > 0


def test_every_method_finds_better_answers_than_drawing(checks):
    drawing = the(checks, "drawing")["value"]
    for line in checks:
        if line["check"] == "method":
            assert line["value"] > drawing + 0.3, line


def test_prefixes_are_read_once(checks):
    check = the(checks, "prefix")
    assert 0 < check["read"] < check["whole"] / 2


def test_scorers_keep_nothing_of_what_is_over(checks):
    assert the(checks, "entries")["left"] == 0


def test_refusals(checks):
    messages = the(checks, "refusals")
    assert "no scorers" in messages["scorers"]
    assert "maximum of 512" in messages["long"]
    assert "two tokens" in messages["short"]
    assert "no scorer of that name" in messages["unknown"]
    assert "'faulty' failed" in messages["fault"]
    assert "methods are" in messages["method"]


def test_the_server_finds_the_same(checks, server):
    """The same seed through the other driver, whose engine batches and caches otherwise."""
    for line in checks:
        if line["check"] == "alone":
            answer = server.generate(
                prompt_token_ids=line["prompt"],
                scorers={"sentiment": 1.0, "brevity": 0.3},
                beta=4.0,
                seed=1,
                max_tokens=40,
                search=line["search"],
            )
            [choice] = answer["choices"]
            assert choice["token_ids"] == line["answer"], line["method"]
            for name, value in line["facts"].items():
                assert choice["search"][name] == pytest.approx(value, abs=1e-3), name
            drawn = answer["usage"]["search"]["drawn_tokens"]
            assert drawn == line["usage"]["drawn_tokens"]
