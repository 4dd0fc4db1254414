"""Characters that come in several tokens: a stream shows what the whole answer shows."""

import json

import pytest
from transformers import AutoTokenizer

from scorecard import spelling
from trimtab_models import demo

pytestmark = [pytest.mark.engine, pytest.mark.scorecard(letter="B")]

TEXTS = {"joined emoji": spelling.EMOJI, "CJK": spelling.CJK, "single bytes": spelling.BYTES}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo.base())


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_streams_equal_whole_answers(server, tokenizer, name, path):
    """A scorer spells the text, byte by byte, out of the tokens that it takes."""
    text = TEXTS[name]
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) > len(text)
    body = {
        "temperature": 0,
        "max_tokens": len(ids),
        "ignore_eos": True,
        "allowed_token_ids": sorted({*ids, *range(100, 104)}),
        "guidance": {"scorers": {"spelling": 1.0}, "beta": 50, "k": 256, "mass": 1.0},
    }
    body |= {"prompt": name} if path == "/v1/completions" else chat(name)
    whole = server.http.post(path, json=body)
    assert whole.status_code == 200, whole.text
    streamed = server.http.post(path, json={**body, "stream": True})
    pieces = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: {")]
    texts = [shown_text(choice) for piece in pieces for choice in json.loads(piece)["choices"]]
    assert shown_text(whole.json()["choices"][0]) == text
    assert "".join(texts) == text
    assert not any("\ufffd" in piece for piece in texts)


def chat(name):
    return {"messages": [{"role": "user", "content": name}]}


def shown_text(choice):
    return choice.get("text") or (choice.get("message") or choice.get("delta") or {}).get(
        "content", ""
    )
