"""What an unfinished answer promises: by hand, and against whole answers on random text."""

import random

import pytest

from trimtab_models.smollm2.instructions import KINDS, Rule, rule_of, success
from trimtab_models.smollm2.prompts import chat
from trimtab_models.smollm2.unfinished import END, OPEN, promise

RULES = [Rule(name, value) for name, kind in KINDS.items() for value in kind.values]
WORDS = ("a", "the", "The", "good", "friend", "time", "old", "Sea", "of", "and", "because")
MARKS = (" ", ", ", ". ", "\n", "\n1. ", "\n2. ", "\n- ", " 3) ")


def of(rule, answer):
    return promise(chat(f"Tell me about the sea. {rule.sentence}") + answer)


@pytest.mark.parametrize(
    ("rule", "answer", "expected"),
    [
        (Rule("lower"), "it is", 1),
        (Rule("lower"), "it Is", 0),
        (Rule("uses", "good"), "It is a", OPEN),
        (Rule("uses", "good"), "It is a good", 1),
        (Rule("uses", "good"), "It is a goody", OPEN),
        (Rule("avoids", "the"), "", 1),
        (Rule("avoids", "the"), "It was there", 1),
        (Rule("avoids", "the"), "It was the", 0),
        (Rule("at-most", "3"), "", 1),
        (Rule("at-most", "3"), "One two", 0.5),
        (Rule("at-most", "3"), "One two three", 0.25),
        (Rule("at-most", "3"), "One two three four", 0),
        (Rule("at-most", "3"), "One two three four five", 0),
        (Rule("items", "2"), "Well:\n- one\n- two", 0.75),
        (Rule("items", "2"), "Well:\n- one\n- two\n- three", 0),
        (Rule("numbered", "2"), "", 0.25),
        (Rule("numbered", "2"), "1", 0.375),
        (Rule("numbered", "2"), "1.", 0.4375),
        (Rule("numbered", "2"), "1. ", 0.4375),
        (Rule("numbered", "2"), "Well", 0),
        (Rule("numbered", "2"), "1. Well", 0.5),
        (Rule("numbered", "2"), "1. Well\n", 0.75),
        (Rule("numbered", "2"), "1. Well\n2. So", 1),
        (Rule("no-commas"), "One two", 1),
        (Rule("no-commas"), "One, two", 0),
    ],
)
def test_by_hand(rule, answer, expected):
    assert of(rule, answer) == expected


def text(draw, rule):
    words = (*WORDS, rule.value or "sea")
    return "".join(draw.choice(words) + draw.choice(MARKS) for _ in range(draw.randint(0, 40)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind + rule.value)
def test_a_promise_fits_what_becomes_of_the_answer(rule):
    """0 and 1 hold for every continuation, and an answer that has ended is judged as it stands."""
    draw = random.Random(0)
    kept = {0.0: 0, 1.0: 0}
    for _ in range(300):
        answer, more = text(draw, rule), text(draw, rule)
        whole = chat(f"Tell me about the sea. {rule.sentence}")
        assert rule_of(whole) == rule
        assert of(rule, answer + END) == success(whole, answer)
        promised = of(rule, answer)
        assert 0 <= promised <= 1
        if promised == 0 and rule.kind != "numbered":  # its points may come later
            assert success(whole, answer + more) == 0
            kept[0.0] += 1
        if promised == 1 and rule.kind in ("uses", "numbered"):
            assert success(whole, answer + " and so on for ever " + more) == 1
            kept[1.0] += 1
    assert sum(kept.values()) > 20


def test_a_prompt_without_a_rule_is_refused():
    with pytest.raises(ValueError, match="no rule"):
        promise(chat("Tell me about the sea.") + "It is")
