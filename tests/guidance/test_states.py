"""The sums of the base's states equal a mean over the whole answer, whatever happens to rows."""

import numpy as np
import pytest
import torch
from torch import nn

from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scoring.states import HiddenStates, RowState, StateBatch
from trimtab.scoring.text import PromptContext
from trimtab.states import States

HIDDEN, VOCAB = 6, 5
SIZES, AT = (HIDDEN, HIDDEN, 1), (np.array([1, 2]), 1)


def state(prefix):
    """The base's state of a prefix: any function of its tokens."""
    generator = torch.Generator().manual_seed(hash(tuple(int(token) for token in prefix)) % 2**31)
    return torch.randn(HIDDEN, generator=generator)


def expected(prefix, start):
    """By definition: the last state, and the mean of all from the prompt's last token on."""
    states = torch.stack([state(prefix[:n]) for n in range(start, len(prefix) + 1)])
    return torch.stack((states[-1], states.mean(0)))


def row(prompt, answer=(), start=None):
    made = Row(GuidanceParams(), len(prompt), context=PromptContext(start))
    made.prefix = np.array([*prompt, *answer], dtype=np.int64)
    return made


def step(states, rows, order=None):
    """One step of some rows, in an order of the engine's, among rows of others."""
    places = list(range(len(rows))) if order is None else order
    hidden = torch.full((max(places) + 2, HIDDEN), 7.0)
    for place, one in zip(places, rows, strict=True):
        hidden[place] = state(one.prefix)
    states.follow(list(zip(places, rows, strict=True)), hidden)
    hidden.zero_()  # the engine uses its buffer again


def grow(one, token):
    one.prefix = np.append(one.prefix, token)


def test_whatever_happens_to_rows():
    rng = np.random.default_rng()
    states, live, gone, compared = States(), {}, [], 0
    for _ in range(300):
        if len(live) < 6 and rng.random() < 0.4:
            new = row(rng.integers(VOCAB, size=rng.integers(1, 4)))
            live[new.key] = (new, len(new.prefix))
        for key in list(live):
            old, start = live[key]
            if rng.random() < 0.03:  # it ends
                states.end(old)
                del live[key]
            elif rng.random() < 0.1 and old.state is not None:  # preempted: a new row comes back
                gone.append(old)  # some engines keep it until its slot is taken
                if rng.random() < 0.5:
                    states.end(gone.pop())
                back = row(old.prefix[:start], old.prefix[start:])
                del live[key]
                live[back.key] = (back, start)
        chosen = [pair for pair in live.values() if rng.random() < 0.9]
        if not chosen:
            continue
        rng.shuffle(chosen)
        rows = [one for one, _ in chosen]
        step(states, rows, rng.permutation(len(rows) + 2)[: len(rows)].tolist())
        for (one, start), actual in zip(chosen, states.of(rows), strict=True):
            torch.testing.assert_close(actual, expected(one.prefix, start), rtol=1e-4, atol=1e-4)
            compared += 1
            if rng.random() < 0.9:  # else the same step again
                grow(one, rng.integers(VOCAB))
            else:
                states.follow([(0, one)], torch.full((1, HIDDEN), 9.0))
    assert compared > 300


def test_a_sum_is_not_used_for_other_tokens():
    states, one = States(), row([1, 2])
    step(states, [one])
    grow(one, 3)
    step(states, [one])
    one.prefix = np.array([1, 2, 4, 4])  # not what it was, one token longer
    step(states, [one])
    assert states.of([one]).isnan().any()
    other = row([1], [2, 3])  # the same tokens, but its answer begins earlier
    assert states.of([other]).isnan().all()


def test_lost_beside_known():
    states, known, lost = States(), row([1]), row([2], [3, 3])
    step(states, [known, lost])
    actual = states.of([known, lost])
    torch.testing.assert_close(actual[0], expected(known.prefix, 1))
    assert actual[1].isnan().any()
    grow(lost, 1)
    grow(known, 1)
    step(states, [known, lost])
    assert states.of([lost]).isnan().any(), "a lost sum is lost for good"
    assert states.of([known]).isfinite().all()


def test_beams_move():
    """Rows that take over one another's tokens, as beam search does."""
    states, a, b = States(), row([1]), row([1])
    step(states, [a, b])
    grow(a, 2)
    grow(b, 3)
    step(states, [a, b])
    a.prefix, b.prefix = np.array([1, 3, 0]), np.array([1, 3, 4])
    step(states, [a, b])
    for one in (a, b):
        torch.testing.assert_close(states.of([one])[0], expected(one.prefix, 1))


def test_a_search_continues_ended_rows():
    states, first = States(), row([1, 2])
    for token in (3, 4, 0):
        step(states, [first])
        grow(first, token)
    states.end(first)
    del first
    second = row([1, 2, 3, 4, 0], start=2)  # the answer began after two tokens
    step(states, [second])
    torch.testing.assert_close(states.of([second])[0], expected(second.prefix, 2))
    scored = row([1, 2], [3, 4])  # a sequence to score, before its last token
    assert states.of([row([1], [2, 3, 4])]).isnan().all()
    torch.testing.assert_close(states.of([scored])[0], expected(scored.prefix, 2))


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("trimtab.states.MAX_BYTES", 2000)
    states = States()
    for token in range(100):
        one = row([token])
        step(states, [one])
        states.end(one)
    assert 10 < len(states.ended) < 40
    assert states.of([row([99])]).isfinite().all()
    assert states.of([row([0])]).isnan().all()


def test_what_ends_again_is_the_newest(monkeypatch):
    """As where the same seeds draw an answer again, long after it was drawn first."""
    monkeypatch.setattr("trimtab.states.MAX_BYTES", 2000)
    states, again = States(), row([0])
    step(states, [again])
    states.end(again)
    for token in range(1, 30):
        one = row([token])
        step(states, [one])
        states.end(one)
    states.end(again)
    del again
    for token in range(30, 60):
        one = row([token])
        step(states, [one])
        states.end(one)
    assert states.of([row([1])]).isnan().all(), "some are given up"
    torch.testing.assert_close(states.of([row([0])])[0], expected([0], 1))


def test_a_lost_sum_replaces_none():
    states, known = States(), row([1])
    step(states, [known])
    grow(known, 2)
    step(states, [known])
    states.end(known)
    lost = row([1], [2])
    lost.state = RowState(StateBatch(*[torch.full((1, n), torch.nan) for n in SIZES]), 0, *AT)
    states.end(lost)
    torch.testing.assert_close(states.of([row([1], [2])])[0], expected([1, 2], 1))


def test_the_states_of_a_text_are_known():
    states, text = States(), row([1], [2, 3, 4])
    states.know(text.prefix, torch.stack([state(text.prefix[:n]) for n in range(1, 5)]))
    torch.testing.assert_close(states.of([text])[0], expected(text.prefix, 1))


@pytest.mark.parametrize("shape", [(3, HIDDEN), (3, 4, HIDDEN)])
def test_a_hook_sees_the_input_of_the_logits(shape):
    module, inputs = nn.Linear(HIDDEN, VOCAB), torch.randn(shape)
    hidden = HiddenStates(module)
    assert hidden.of(3) is None
    module(inputs)
    last = hidden.of(3)
    torch.testing.assert_close(last, inputs if inputs.dim() == 2 else inputs[:, -1])
    assert hidden.of(2) is None, "states of other rows"


def test_a_hook_ends_with_its_last_user():
    module = nn.Linear(HIDDEN, VOCAB)
    hidden = HiddenStates(module)
    assert len(module._forward_pre_hooks) == 1
    del hidden
    assert not module._forward_pre_hooks
