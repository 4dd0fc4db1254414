"""Numbers that are no numbers, and caps that no spelling passes; no server is needed."""

from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from trimtab.errors import InvalidRequest, TrimtabError
from trimtab_server import openai_requests as requests
from trimtab_server.cap_settings import NARROW, WIDE, Caps
from trimtab_server.caps import CHOICES, COUNTS, INTEGERS, NUMBERS, SWITCHES, answers, check_caps
from trimtab_server.protocol import GenerateRequest, parse
from trimtab_server.settings import Settings

pytestmark = pytest.mark.scorecard(letter="B")

ODD = ["100", "1", 200.0, 1.0, True, False, [1], {}, "x"]
LISTS = {
    "stop": [5, True, [1], ["a", 1], ["a", None], {}, ["a"] * 5],
    "stop_sequences": [5, ["a"] * 5, [["a"]]],
    "bad_words": [5, [1], ["a"] * 301],
    "stop_token_ids": ["1", 1, ["1"], [1.0], [True], [1] * 65],
    "allowed_token_ids": ["1", ["1"], [1.0]],
    "logprob_token_ids": [["1"], {"1": 1}],
    "logit_bias": [[1], "x", {"1": "5"}, {"1": True}, {"1": None}, {str(i): 1 for i in range(301)}],
    "prompt": [["x"] * 17, [[1]] * 17, [1.0, 2.0], [True], ["a", 1], [1, "a"], [["1"]], [{}]],
    "messages": [[[{"role": "user", "content": "x"}]] * 17],
}
STATE = SimpleNamespace(caps=NARROW)
WELL = [
    {"n": 8, "max_tokens": 10**6, "temperature": 1, "top_p": 0.5, "seed": -1, "stream": True},
    {"logprobs": True, "top_logprobs": 20, "stop": ["a"] * 4, "stop_token_ids": [1, 2]},
    {"logprobs": 20, "stop": "a", "logit_bias": {"5": -1.5}, "truncate_prompt_tokens": -1},
    {"prompt": "x"},
    {"prompt": list(range(100))},
    {"prompt": [[1, 2], [3]]},
    {"prompt": ["x"] * 16},
    {"messages": [{"role": "user", "content": "x"}] * 40},
    {"messages": [[{"role": "user", "content": "x"}] * 40] * 16},
    dict.fromkeys([*INTEGERS, *NUMBERS, *SWITCHES, *LISTS]),
]


@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_is_nothing_else(name):
    for value in ODD:
        if name == "logprobs" and isinstance(value, bool):
            continue  # a switch on the chat routes
        with pytest.raises(InvalidRequest, match=f"^{name} must be an integer"):
            check_caps({name: value})


@pytest.mark.parametrize("name", [*CHOICES, *COUNTS])
def test_no_count_is_over_its_cap_or_below_zero(name):
    cap = COUNTS.get(name, NARROW.choices)
    check_caps({name: cap})
    for value in (cap + 1, 10**30, -1, -(10**30)):
        with pytest.raises(InvalidRequest, match=f"^{name} "):
            check_caps({name: value})


@pytest.mark.parametrize("caps", [NARROW, WIDE, Caps(prompts=3, choices=5)])
def test_the_caps_of_prompts_and_choices_are_settings(caps):
    at = {"n": caps.choices, "prompt": ["x"] * caps.prompts}
    check_caps(at, caps)
    turn = [{"role": "user", "content": "x"}]
    for name, value in {
        "n": caps.choices + 1,
        "best_of": caps.choices + 1,
        "prompt": ["x"] * (caps.prompts + 1),
        "messages": [turn] * (caps.prompts + 1),
    }.items():
        with pytest.raises(InvalidRequest, match=f"^{name} is over this server's limit of "):
            check_caps({name: value}, caps)
    assert answers(at, caps) == caps.prompts * caps.choices
    parse({"prompt": "x", "n": caps.choices}, caps)
    with pytest.raises(InvalidRequest, match=r"^n is over"):
        parse({"prompt": "x", "n": caps.choices + 1}, caps)


def test_principles_count_as_answers():
    one = {"text": "x", "weight": 1}
    assert answers({"n": 2, "principles": [one, one]}) == 6
    assert answers({"n": 2, "guidance": {"principles": [one], "negative_prompt": "x"}}) == 6
    assert answers({"principles": [one] * 1000}) == 9
    assert answers({"principles": "x", "guidance": [one]}) == 1


def test_without_users_keys_the_caps_are_wide():
    """lm-eval sends 32 prompts in one request, TRL 32 with 16 answers to each."""
    assert Settings(model="m").caps() == WIDE
    check_caps({"prompt": ["x"] * 32, "n": 16}, WIDE)
    assert Settings(model="m", admin_key="a").caps() == WIDE
    assert Settings(model="m", api_key=["k"]).caps() == NARROW
    settings = Settings(model="m", api_key=["k"], max_prompts=32, max_choices=16)
    assert settings.caps() == Caps(prompts=32, choices=16)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_no_text_and_no_switch(name):
    check_caps({name: 1})
    check_caps({name: 0.5})
    for value in ("0.5", True, [0.5], {}):
        with pytest.raises(InvalidRequest, match=f"^{name} must be a number"):
            check_caps({name: value})


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_is_no_text_and_no_number(name):
    check_caps({name: True})
    for value in ("true", 1, 0, 1.0, []):
        with pytest.raises(InvalidRequest, match=f"^{name} must be true or false"):
            check_caps({name: value})


@pytest.mark.parametrize("name", LISTS)
def test_lists_hold_what_they_should_and_not_too_much(name):
    for value in LISTS[name]:
        with pytest.raises(InvalidRequest, match=f"^{name} "):
            check_caps({name: value})


@pytest.mark.parametrize("fields", WELL)
def test_what_is_well_passes(fields):
    check_caps(fields)


def test_the_control_pydantic_takes_them():
    """Why there is a reading of our own: lax models, as vLLM's are, count otherwise."""
    for value in ("1", 1.0, True):
        assert GenerateRequest.model_validate({"prompt": "x", "n": value}, strict=False).n == 1
        with pytest.raises(ValidationError):
            GenerateRequest.model_validate({"prompt": "x", "n": value})


@pytest.mark.parametrize("read", [requests.completion, requests.chat])
def test_the_upstream_server_reads_them_the_same(read):
    body = (
        {"prompt": "x"}
        if read is requests.completion
        else {"messages": [{"role": "user", "content": "x"}]}
    )
    for name in ("n", "max_tokens", "best_of", "seed"):
        for value in ODD:
            with pytest.raises(TrimtabError, match=f"^{name} must be an integer"):
                read({**body, name: value}, STATE)
    for name, neutral in requests.NEUTRAL.items():
        if isinstance(neutral, int | float) and name != "logprobs":
            with pytest.raises(TrimtabError, match=f"^{name} "):
                read({**body, name: str(neutral)}, STATE)
    with pytest.raises(TrimtabError, match="logprobs"):
        read({**body, "logprobs": 0}, STATE)
