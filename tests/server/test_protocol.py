"""The body of POST /generate, without a server: nulls and seeds as on the OpenAI routes."""

import pytest

from trimtab.errors import TrimtabError
from trimtab_server.protocol import GenerateRequest, parse

pytestmark = pytest.mark.scorecard(letter="B")

DEFAULTS = GenerateRequest(prompt="x")


@pytest.mark.parametrize("name", sorted(set(GenerateRequest.model_fields) - {"prompt"}))
def test_null_means_the_default(name):
    assert parse({"prompt": "x", name: None})[0] == DEFAULTS


def test_null_is_no_prompt():
    with pytest.raises(TrimtabError, match="exactly one of prompt"):
        parse({"prompt": None})


def test_guidance_and_search_are_never_null():
    for name in ("beta", "search"):
        with pytest.raises(TrimtabError, match=name):
            parse({"prompt": "x", name: None})


def test_seed_minus_one_is_another_each_time():
    assert parse({"prompt": "x", "seed": -1})[0].seed is None
    assert parse({"prompt": "x", "seed": 0})[0].seed == 0
    for seed in (-2, 2**63, "1", 1.0, True):
        with pytest.raises(TrimtabError, match="seed"):
            parse({"prompt": "x", "seed": seed})
