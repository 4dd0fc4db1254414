"""Instructions that code can check: a request, a rule for the form of its answer, and the check.

    "Tell me about a wool coat. Do not use commas."

The rule is a sentence of the prompt, so prompt and answer alone decide the success, without a list
of prompts. `KINDS` has one entry for each kind of rule.
"""

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from trimtab_models.smollm2.prompts import TEST, TRAIN

WORDS_NEEDED = 5
"""Words that any answer must have: an empty one obeys every ban."""
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_ITEM = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]+\S", re.MULTILINE)
_NUMBERED = re.compile(r"^[ \t]*\d+[.)][ \t]+\S", re.MULTILINE)


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case; hyphens and apostrophes inside a word belong to it."""
    return _WORD.findall(text.casefold())


def items_of(text: str) -> int:
    """Number of list items: lines that begin with a hyphen, an asterisk, a bullet or a number."""
    return len(_ITEM.findall(text))


def points_of(text: str) -> int:
    """Number of the points of a numbered list: lines that begin with a number."""
    return len(_NUMBERED.findall(text))


def _lower(answer: str, _: str) -> float:
    letters = [char for char in answer if char.isalpha()]
    capitals = sum(char != char.lower() for char in letters)
    return float(1 - Fraction(capitals, len(letters))) if letters else 0.0


def _uses(answer: str, word: str) -> float:
    return float(word.casefold() in words_of(answer))


def _avoids(answer: str, word: str) -> float:
    return 1 / (1 + words_of(answer).count(word.casefold()))


def _at_most(answer: str, number: str) -> float:
    return min(1.0, int(number) / max(len(words_of(answer)), 1))


def _items(answer: str, number: str) -> float:
    return 1 / (1 + abs(items_of(answer) - int(number)))


def _numbered(answer: str, number: str) -> float:
    return min(1.0, points_of(answer) / max(int(number), 1))


def _no_commas(answer: str, _: str) -> float:
    return 1 / (1 + answer.count(","))


@dataclass(frozen=True)
class Kind:
    """A kind of rule."""

    sentence: str
    """The rule in the prompt; {} is its value."""
    values: tuple[str, ...]
    """The values that it may have; ("",) if the sentence has no gap."""
    share: Callable[[str, str], float]
    """(answer, value) → how far the answer obeys, from 0 to 1; 1 exactly if it does."""


KINDS: Mapping[str, Kind] = {
    "lower": Kind("Use lower case letters only.", ("",), _lower),
    "uses": Kind(
        'Use the word "{}" in your answer.', ("because", "friend", "good", "small", "time"), _uses
    ),
    "avoids": Kind(
        'Do not use the word "{}".', ("a", "and", "in", "of", "the", "to", "you"), _avoids
    ),
    "at-most": Kind("Answer in at most {} words.", ("15", "20", "30"), _at_most),
    "items": Kind("Answer with a list of exactly {} items.", ("2", "3", "4"), _items),
    "numbered": Kind(
        "Answer as a numbered list: 1., 2., and so on, at least {} points.", ("2", "3"), _numbered
    ),
    "no-commas": Kind("Do not use commas.", ("",), _no_commas),
}
"""By name."""
CHOSEN = ("uses", "avoids", "at-most", "numbered", "no-commas")
"""The kinds that `prompts` asks for: the base obeys 15 to 60 % of them. It obeys *lower* in 3 % and
*items* in 3 to 13 % of its answers (32 answers to each rule)."""


def _pattern(kind: Kind) -> re.Pattern[str]:
    gap = r"(\d{1,3})" if kind.values[0].isdecimal() else r"([\w-]+)"
    return re.compile(re.escape(kind.sentence).replace(r"\{\}", gap))


_PATTERNS = {name: _pattern(kind) for name, kind in KINDS.items()}
"""The sentence of each kind, with its value as the only group."""


@dataclass(frozen=True)
class Rule:
    """A kind of rule with its value."""

    kind: str
    value: str = ""

    @property
    def sentence(self) -> str:
        """The rule as the prompt says it."""
        return KINDS[self.kind].sentence.format(self.value)

    def graded(self, answer: str) -> float:
        """How far an answer obeys, from 0 to 1; below 1 if it breaks the rule.

        An answer of fewer than `WORDS_NEEDED` words counts in proportion to their number.
        """
        enough = min(1.0, len(words_of(answer)) / WORDS_NEEDED)
        return enough * KINDS[self.kind].share(answer, self.value)

    def obeyed(self, answer: str) -> bool:
        """Whether an answer obeys, and has `WORDS_NEEDED` words."""
        return self.graded(answer) == 1.0


def rule_of(prompt: str) -> Rule:
    """The rule that a prompt ends with; the last one, if it names several.

    Raises:
        ValueError: there is none.
    """
    rules = [
        (match.start(), Rule(name, match[1] if match.re.groups else ""))
        for name, pattern in _PATTERNS.items()
        for match in pattern.finditer(prompt)
    ]
    if not rules:
        raise ValueError("the prompt has no rule that code can check; see KINDS.")
    return max(rules, key=lambda one: one[0])[1]


def success(prompt: str, answer: str) -> float:
    """1 if the answer obeys the prompt's rule, else 0."""
    return float(rule_of(prompt).obeyed(answer))


def graded(prompt: str, answer: str) -> float:
    """How far the answer obeys the prompt's rule, from 0 to 1: partial credit."""
    return rule_of(prompt).graded(answer)


def prompts(split: str, n: int, seed: int) -> list[str]:
    """n requests with a rule each, all `CHOSEN` kinds in turn; requests recur with other rules.

    Raises:
        ValueError: the split is neither "train" nor "test".
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    draw = random.Random(seed)
    requests = list(TRAIN if split == "train" else TEST)
    pools: dict[str, list[str]] = {}
    for name in CHOSEN:
        rules = [Rule(name, value).sentence for value in KINDS[name].values]
        pairs = [f"{request} {rule}" for request in requests for rule in rules]
        draw.shuffle(pairs)
        pools[name] = pairs
    longest = max(map(len, pools.values()))
    turns = [pool[i] for i in range(longest) for pool in pools.values() if i < len(pool)]
    return turns[:n]
