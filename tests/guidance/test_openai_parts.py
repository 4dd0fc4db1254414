"""Parts of the black-box base: base logits, sampling, what may be shown, and what is read."""

import math

import pytest
import torch
from hypothesis import given as examples
from hypothesis import strategies as st

from trimtab.adapters.openai.client import UnusableAnswer
from trimtab.adapters.openai.holdback import Holdback
from trimtab.adapters.openai.positions import Position, read_chat, read_completion
from trimtab.adapters.openai.sampling import FILLERS, TokenSampler, spread
from trimtab.adapters.openai.token_texts import Pieces
from trimtab.candidates import select
from trimtab.engine import Sampling


@examples(
    st.lists(st.floats(0.01, 1), min_size=2, max_size=12),
    st.floats(0, 0.9),
    st.booleans(),
)
def test_base_logits_are_a_distribution_in_which_only_the_revealed_are_candidates(
    weights, hidden, closed
):
    total = sum(weights)
    p = sorted((w / total * (1 - hidden) for w in weights), reverse=True)
    position = Position(3, {3 + 2 * i: math.log(x) for i, x in enumerate(p)})
    logits = spread(position, 4000, closed)
    if hidden / (4000 - len(p)) < p[-1] * 0.99:
        assert float(logits.logsumexp(-1)) == pytest.approx(0, abs=1e-3)
        candidates = select(logits, torch.tensor([len(p)]), torch.tensor([1.0]), len(p))
        assert set(candidates.tokens[0].tolist()) == set(position.logprobs)
        expected = torch.tensor([math.log(x) for x in p])
        assert torch.allclose(candidates.logprobs[0], expected, atol=2e-3)


def test_an_unknown_vocabulary_is_as_large_as_it_must_be():
    position = Position(0, {0: math.log(0.5), 1: math.log(1e-4)})
    logits = spread(position, 2, False)
    assert logits.shape[1] > 0.4 / 1e-4
    assert logits[0, 2:].max() < logits[0, 1]
    tiny = Position(0, {0: math.log(0.5), 1: -80.0})
    assert spread(tiny, 2, False).shape[1] == FILLERS + 2
    candidates = select(spread(tiny, 2, False), torch.tensor([2]), torch.ones(1), 2)
    assert candidates.tokens.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [0.6, 0.3, 0.1]),
        ({"temperature": 0.5}, [0.36, 0.09, 0.01]),
        ({"top_k": 2}, [0.6, 0.3, 0]),
        ({"top_p": 0.7}, [0.6, 0.3, 0]),
        ({"min_p": 0.4}, [0.6, 0.3, 0]),
        ({"temperature": 0}, [1, 0, 0]),
        ({"temperature": 0.5, "min_p": 0.2}, [0.36, 0.09, 0]),
    ],
)
def test_sampling(fields, expected):
    sampling = Sampling(seed=1, **fields)
    sampler = TokenSampler(sampling, 0)
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    drawn = torch.tensor([sampler.sample([0, 1, 2], logits) for _ in range(2000)])
    shares = torch.bincount(drawn, minlength=3) / 2000
    assert torch.allclose(shares, torch.tensor(expected) / sum(expected), atol=0.05)
    again = TokenSampler(sampling, 0)
    assert [again.sample([0, 1, 2], logits) for _ in range(50)] == drawn[:50].tolist()
    if not sampler.greedy:
        other = TokenSampler(sampling, 1)
        assert [other.sample([0, 1, 2], logits) for _ in range(50)] != drawn[:50].tolist()


@examples(st.text("ab🙂\ufffd", max_size=30), st.lists(st.text("ab", min_size=1), max_size=3))
def test_what_is_sent_piece_by_piece_is_the_text_before_the_first_stop(text, stops):
    holdback, sent = Holdback(stops), ""
    for n in range(len(text) + 1):
        sent += holdback.update(text[:n], n == len(text))
        if holdback.stopped:
            break
    whole = text.rstrip("\ufffd")
    ends = [whole.index(stop) for stop in stops if stop in whole]
    assert sent == holdback.sent
    # A stop that is seen sooner ends the answer, though one that began before it was not whole.
    assert whole.startswith(sent)
    if not ends:
        assert sent == whole
    assert not any(stop in sent for stop in stops)


def test_pieces_are_bytes_and_prompts_come_and_go():
    pieces = Pieces()
    a, b = pieces.number(b"\xf0\x9f"), pieces.number(b"\x99\x82")
    prompt = pieces.add_prompt("Hi ")
    assert pieces.number(b"\xf0\x9f") == a
    assert pieces.joined([prompt, a, b]).decode() == "Hi 🙂"
    assert pieces.add_prompt("Hi ") != prompt


def name(token, logprobs):
    return sum(token.encode())


def completion(top, finish="length"):
    logprobs = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [top]}
    return {"choices": [{"text": "a", "finish_reason": finish, "logprobs": logprobs}]}


def test_reading_keeps_the_most_likely_and_drops_what_is_masked():
    answer = read_completion(completion({"a": -1.0, "b": -0.9, "c": -9999.0, "d": -7.0}), 2, name)
    (position,) = answer.positions
    assert list(position.logprobs) == [98, 97]
    assert position.token == 97
    assert position.unrevealed == pytest.approx(1 - math.exp(-1) - math.exp(-0.9))
    twice = {"token": "a", "logprob": -1.0}
    content = [{"token": "a", "logprob": -1.0, "top_logprobs": [twice, {**twice, "logprob": -2.0}]}]
    choice = {"finish_reason": "length", "logprobs": {"content": content}}
    (position,) = read_chat({"choices": [choice]}, 5, name).positions
    assert position.logprobs[97] == pytest.approx(math.log(math.exp(-1) + math.exp(-2)))


BAD = [{"a": bad} for bad in (math.nan, math.inf, 1.0, "x", True, -9999.0)]


@pytest.mark.parametrize("top", [*BAD, {}, None, {"a": 0.0, "b": 0.0}])
def test_log_probabilities_that_are_none_are_not_used(top):
    with pytest.raises(UnusableAnswer):
        read_completion(completion(top), 5, name)


def test_an_end_without_a_token_is_an_end():
    none = {"finish_reason": "stop", "logprobs": None}
    assert read_completion({"choices": [none]}, 5, name).positions == []
    assert read_chat({"choices": [none]}, 5, name).positions == []
    with pytest.raises(UnusableAnswer):
        read_chat({"choices": [{**none, "finish_reason": "length"}]}, 5, name)
