"""`trimtab serve smollm2`: a real base, served by name and steered."""

from trimtab_server.bases import UNTRAINED

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell me about a good day."}]


def answer(server, messages, **fields):
    return server.generate(messages=messages, temperature=0, max_tokens=24, **fields)["choices"][0]


def test_it_answers(real_server):
    assert "Paris" in answer(real_server, QUESTION, beta=0)["text"]
    [model] = real_server.http.get("/v1/models").json()["data"]
    assert model["id"] == "smollm2"


def test_a_function_steers_it(real_server):
    base = answer(real_server, STORY, beta=0)
    guided = answer(real_server, STORY, beta=6, scorers={"exclaims": 1})
    assert guided["text"].count("!") > base["text"].count("!")
    assert guided["guidance"]["kl"] > 0


def test_its_log_says_only_what_matters(real_server):
    """That it is ready, and how to train scorers if there are none; nothing of the libraries."""
    *others, line = real_server.log.read_text().splitlines()
    assert line.startswith("ready: smollm2 at ")
    assert others in ([], [f"trimtab: {UNTRAINED}"])
