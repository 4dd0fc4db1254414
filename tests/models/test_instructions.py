"""Instructions that code can check: the checks, on answers by hand and on hostile text."""

import random

import pytest

from hostile import HOSTILE
from trimtab_models.smollm2 import instructions
from trimtab_models.smollm2.instructions import (
    CHOSEN,
    KINDS,
    WORDS_NEEDED,
    Rule,
    graded,
    items_of,
    rule_of,
    success,
    words_of,
)
from trimtab_models.smollm2.prompts import TEST, TRAIN, chat

RULES = [Rule(name, value) for name, kind in KINDS.items() for value in kind.values]


@pytest.mark.parametrize(
    ("rule", "answer", "obeyed"),
    [
        (Rule("lower"), "yes, i do like 3 old dogs.", True),
        (Rule("lower"), "yes, I do like old dogs.", False),
        (Rule("lower"), "über ärger und größe hier", True),
        (Rule("lower"), "ÜBER ärger und größe hier", False),
        (Rule("lower"), "1 2 3 4 5 6", False),
        (Rule("uses", "because"), "I stay here because of you.", True),
        (Rule("uses", "because"), "BECAUSE: I stay here with you", True),
        (Rule("uses", "because"), "I stay here for a cause, be sure.", False),
        (Rule("uses", "Time"), "The TIME has come at last.", True),
        (Rule("uses", "time"), "All the times are bad here.", False),
        (Rule("uses", "time"), "A time-table hangs on the wall.", False),
        (Rule("avoids", "the"), "They went there with other friends.", True),
        (Rule("avoids", "the"), "They went to The Hague today.", False),
        (Rule("avoids", "the"), "It ends at the.", False),
        (Rule("avoids", "a"), "An apple is a fruit here.", False),
        (Rule("at-most", "6"), "One two three four five six.", True),
        (Rule("at-most", "6"), "One two three four five six seven", False),
        (Rule("at-most", "6"), "It's a well-known, odd - idea!", True),
        (Rule("items", "2"), "Here they are:\n- one thing\n- another thing", True),
        (Rule("items", "2"), "1. one thing here\n2) another thing", True),
        (Rule("items", "2"), "* one thing\n  * another thing\n• a third", False),
        (Rule("items", "2"), "one - thing, and then - another thing", False),
        (Rule("items", "2"), "-one thing\n-another thing here", False),
        (Rule("numbered", "2"), "1. one thing here\n2. another\n3. a third", True),
        (Rule("numbered", "2"), "1. one thing here\n- another thing", False),
        (Rule("numbered", "2"), "Version 1. one, and 2. two things", False),
        (Rule("no-commas"), "One; two. Three - four, five", False),
        (Rule("no-commas"), "One; two. Three - four five", True),
    ],
)
def test_by_hand(rule, answer, obeyed):
    prompt = chat(f"Tell me about the sea. {rule.sentence}")
    assert rule_of(prompt) == rule
    assert success(prompt, answer) == obeyed
    assert (graded(prompt, answer) == 1) is obeyed


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_credit_is_whole_exactly_if_the_rule_is_obeyed(rule):
    """On random text of the things that rules are about, by definitions written once more."""
    draw = random.Random(str(rule))
    pieces = ["The", "the", "a", "and", ",", ".", "\n- x", "\n1. y", "because", "time", "of", "is"]
    seen = set()
    for _ in range(300):
        text = " ".join(draw.choices(pieces, k=draw.randrange(40)))
        words, value = words_of(text), rule.value
        obeyed = {
            "lower": text == text.lower(),
            "uses": value in words,
            "avoids": value not in words,
            "at-most": value.isdigit() and len(words) <= int(value),
            "items": value.isdigit() and text.count("\n- x") + text.count("\n1. y") == int(value),
            "numbered": value.isdigit() and text.count("\n1. y") >= int(value),
            "no-commas": "," not in text,
        }[rule.kind] and len(words) >= WORDS_NEEDED
        assert rule.obeyed(text) == obeyed
        assert 0 <= rule.graded(text) <= 1
        seen.add(obeyed)
    assert seen == {True, False} or rule.kind in ("uses", "avoids"), "both cases occur"


@pytest.mark.parametrize("rule", [Rule(name, kind.values[0]) for name, kind in KINDS.items()])
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_judged_like_any_other(rule, text):
    assert 0 <= rule.graded(text) <= 1
    assert rule.obeyed(text) is (rule.graded(text) == 1)


def test_an_empty_answer_obeys_nothing():
    assert not any(rule.obeyed("") or rule.obeyed("Yes. No.") for rule in RULES)


def test_credit_rises_towards_the_rule():
    worse, better = "the cat and the dog and the cow", "the cat and a dog and a cow"
    assert Rule("avoids", "the").graded(worse) < Rule("avoids", "the").graded(better) < 1
    assert Rule("at-most", "6").graded("a b c d e f g h") == pytest.approx(6 / 8)
    assert items_of("- a\n- b\n\n3. c\n4 d") == 3


def test_every_prompt_has_one_rule_and_no_request_is_in_both_splits():
    requests = {}
    for split, known in (("test", TEST), ("train", TRAIN)):
        texts = instructions.prompts(split, 600, 0)
        assert len(set(texts)) == len(texts)
        kinds = [rule_of(text).kind for text in texts[: len(CHOSEN)]]
        assert kinds == list(CHOSEN), "in turn"
        requests[split] = {text.removesuffix(" " + rule_of(text).sentence) for text in texts}
        assert requests[split] <= set(known)
    assert not requests["test"] & requests["train"]
    assert instructions.prompts("test", 40, 1) == instructions.prompts("test", 40, 1)
    assert instructions.prompts("test", 40, 1) != instructions.prompts("test", 40, 2)
    with pytest.raises(ValueError, match="'train' or 'test'"):
        instructions.prompts("validation", 1, 0)


def test_a_prompt_without_a_rule_is_refused_and_the_last_rule_counts():
    for prompt in ("Tell me about the sea.", "", "Answer in at most ten words.", "Do not use x."):
        with pytest.raises(ValueError, match="no rule"):
            rule_of(prompt)
    two = 'Someone said: "Do not use commas." Use lower case letters only.'
    assert rule_of(two) == Rule("lower")
    assert rule_of("Answer in at most 999999999 words. Do not use commas.") == Rule("no-commas")
