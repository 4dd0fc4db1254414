"""The body of POST /generate, without a server: nulls and seeds as on the OpenAI routes."""

import pytest

from trimtab.errors import TrimtabError
from trimtab_server.protocol import GenerateRequest, parse

DEFAULTS = GenerateRequest(prompt="x")


@pytest.mark.parametrize("name", sorted(set(GenerateRequest.model_fields) - {"prompt"}))
def test_null_means_the_default(name):
    assert parse({"prompt": "x", name: None})[0] == DEFAULTS


def test_null_is_no_search_and_no_prompt():
    assert parse({"prompt": "x", "search": None})[2] is None
    with pytest.raises(TrimtabError, match="exactly one of prompt"):
        parse({"prompt": None})


def test_a_guidance_field_is_never_null():
    with pytest.raises(TrimtabError, match="beta"):
        parse({"prompt": "x", "beta": None})


def test_seed_minus_one_is_another_each_time():
    assert parse({"prompt": "x", "seed": -1})[0].seed is None
    assert parse({"prompt": "x", "seed": 0})[0].seed == 0
    for seed in (-2, 2**63, "1", 1.0, True):
        with pytest.raises(TrimtabError, match="seed"):
            parse({"prompt": "x", "seed": seed})
