"""What an unfinished answer promises: the scorer that steers *instructions* by the rule itself.

The reward judges a whole answer, and partial credit (`instructions.graded`) reads an unfinished one
as if it ended there. A rule says more about it:

- it is broken, whatever follows (a forbidden word was said): 0;
- it is obeyed, whatever follows (the wanted word was said): 1;
- it is open: something between, which rises with each step towards obeying.

An answer that has ended is judged as it stands, 0 or 1. So a ban costs nothing as long as it is not
broken, and the end of an answer that is short enough is worth more than its next word.
"""

import re
from collections.abc import Callable, Mapping

from trimtab_models.smollm2 import instructions
from trimtab_models.smollm2.instructions import items_of, rule_of, words_of

ANSWER = "<|im_start|>assistant\n"
"""After it, a rendered conversation has the answer."""
END = "<|im_end|>"
OPEN = 0.5
"""Of an answer that may still obey, if nothing tells how near it is."""
_LINE_STARTS = ((r"", 0.5), (r"\d{1,3}", 0.75), (r"\d{1,3}[.)][ \t]*", 0.875))
"""Beginnings of a numbered line → the share of the next point that they promise."""


def promise(text: str) -> float:
    """What an answer so far promises, from 0 (it fails) to 1 (it obeys the prompt's rule).

    text: the rendered conversation with its special tokens, as `reads=text` hands it over.

    Raises:
        ValueError: its prompt has no rule.
    """
    prompt, _, answer = text.rpartition(ANSWER)
    if answer.endswith(END):
        return instructions.success(prompt, answer.removesuffix(END))
    rule = rule_of(prompt)
    return _PROMISES[rule.kind](answer, rule.value)


def _lower(answer: str, _: str) -> float:
    return float(answer == answer.lower())


def _uses(answer: str, word: str) -> float:
    return 1.0 if word.casefold() in words_of(answer) else OPEN


def _avoids(answer: str, word: str) -> float:
    return float(word.casefold() not in words_of(answer))


def _at_most(answer: str, number: str) -> float:
    """The share of the words that are left, so that the end is worth more with every word."""
    return max(0.0, 1 - len(words_of(answer)) / (int(number) + 1))


def _items(answer: str, number: str) -> float:
    items, wanted = items_of(answer), int(number)
    return (items + 1) / (wanted + 2) if items <= wanted else 0.0


def _numbered(answer: str, number: str) -> float:
    points, wanted = instructions.points_of(answer), int(number)
    line = answer.rpartition("\n")[2].lstrip()
    begun = next((share for start, share in _LINE_STARTS if re.fullmatch(start, line)), 0.0)
    return min(1.0, (points + begun) / wanted)


def _no_commas(answer: str, _: str) -> float:
    return float("," not in answer)


_PROMISES: Mapping[str, Callable[[str, str], float]] = {
    "lower": _lower,
    "uses": _uses,
    "avoids": _avoids,
    "at-most": _at_most,
    "items": _items,
    "numbered": _numbered,
    "no-commas": _no_commas,
}
"""Kind of rule → the promise of an unfinished (answer, value)."""
