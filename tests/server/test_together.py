"""Principles, scorers, a ceiling, a utility and a budget in one streamed request of a chat."""

import openai
import pytest
from conftest import KEY

CHAT = [{"role": "user", "content": "Write a review of a hotel."}]
PRINCIPLES = [
    {"text": "Write a kind review of a hotel.", "weight": 1.0},
    {"text": "Write a short review of a cable.", "weight": -0.5},
]
SCORERS = {"sentiment": 1.0, "formality": 0.5, "probe": 1.0}
PARTS = {"principle 1", "principle 2", *SCORERS}
EVERYTHING = {
    "principles": PRINCIPLES,
    "scorers": SCORERS,
    "ceilings": {"probe": 0.1},
    "utility": {"probe": {"at_least": 0.0}},
    "kl_budget": 2.0,
    "trace": True,
}


def streamed(server, guidance, **fields):
    """The choice's text, and its last chunk."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        chunks = list(
            client.chat.completions.create(
                model="demo",
                messages=CHAT,
                max_tokens=32,
                seed=4,
                stream=True,
                extra_body={"guidance": guidance},
                **fields,
            )
        )
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    return "".join(choice.delta.content or "" for choice in choices), choices[-1]


def test_the_record_adds_up(server):
    text, last = streamed(server, EVERYTHING)
    record = last.guidance
    assert text
    assert record["error"] is None
    assert set(record["kl_parts"]) == PARTS
    assert sum(record["kl_parts"].values()) == pytest.approx(record["kl"] - record["kl_tail"])
    assert 0 < record["kl"] < 8
    scored = [step for step in record["trace"] if step["scores"]]
    assert record["kl"] == pytest.approx(sum(step["kl"] for step in record["trace"]))
    assert all(set(step["scores"]) == PARTS for step in scored)
    duals = [step["duals"]["probe"] for step in scored]
    assert set(record["duals"]) == {"probe"}
    assert record["duals"]["probe"]["last"] == duals[-1]
    assert record["duals"]["probe"]["mean"] == pytest.approx(sum(duals) / len(duals))
    assert min(duals) < 0, "the ceiling binds, else this proves nothing"
    assert max(duals) <= 0
    assert record["beta"]["last"] == scored[-1]["beta"]
    assert set(record["scores"]) == set(SCORERS)
    assert set(record["utilities"]) == {"probe"}
    assert 0 <= record["utilities"]["probe"] <= 1


@pytest.mark.parametrize(
    "guidance",
    [
        {"principles": PRINCIPLES, "scorers": SCORERS, "beta": 0},
        {
            "principles": [{**one, "weight": 0} for one in PRINCIPLES],
            "scorers": dict.fromkeys(SCORERS, 0),
            "beta": 4,
        },
    ],
    ids=["beta", "weights"],
)
def test_nothing_is_the_base_bit_for_bit(server, guidance):
    """Sampled tokens, and their log-probabilities."""
    fields = {"messages": CHAT, "max_tokens": 32, "seed": 4, "logprobs": True, "top_logprobs": 5}
    bodies = [{**fields, "model": "demo", "guidance": one} for one in (guidance, {"beta": 0})]
    answers = [server.http.post("/v1/chat/completions", json=body).json() for body in bodies]
    [[steered], [base]] = [answer["choices"] for answer in answers]
    assert steered["guidance"]["kl"] == 0
    assert steered["message"]["content"] == base["message"]["content"]
    assert steered["logprobs"] == base["logprobs"]
