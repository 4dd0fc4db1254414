"""Wrong entries of `input` on /v1/responses end the request at the first."""

import time

import pytest

import covered
from trimtab.errors import InvalidRequest

pytestmark = pytest.mark.scorecard(letter="B")

items = covered.quietly("trimtab_server.vllm.items")
GOOD = [
    {"role": "user", "content": "hi"},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "x"},
    {"type": "reasoning", "id": "r", "summary": []},
]
WRONG = [{"type": "message"}, {}, 1, {"role": "user", "content": [{}] * 100}]


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_many_wrong_entries_are_refused_at_once(wrong):
    began = time.perf_counter()
    with pytest.raises(InvalidRequest, match="entry 5 of input"):
        items.check_items({"input": GOOD + [wrong] * 1000})
    assert time.perf_counter() - began < 0.25


def test_good_entries_pass():
    items.check_items({"input": GOOD * 20})


def test_few_are_left_to_vllm():
    items.check_items({"input": [{}] * items.FEW})
    items.check_items({"input": "text"})
    items.check_items({})


def test_vllm_alone_tells_of_each():
    """The control: hundreds of errors an entry."""
    with pytest.raises(ValueError, match="validation errors") as refused:
        items.ResponsesRequest.model_validate({"input": [{"type": "message"}] * 50})
    assert len(refused.value.errors()) > 50 * 100


async def test_the_route_has_it():
    async with covered.client(covered.application()) as http:
        answer = await http.post("/v1/responses", json={"input": [{"type": "message"}] * 500})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input"
