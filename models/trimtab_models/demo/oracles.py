"""The exact rewards of the reviews world, for training and evaluating scorers.

Each is a function of (prompt_text, completion_text), reads only the completion's words and returns
a number in [−1, 1]. Case and punctuation are ignored.
"""

import re
from collections.abc import Callable

from trimtab_models.demo.words import CASUAL, FORMAL, POLARITY

TextReward = Callable[[str, str], float]
"""(prompt as the base reads it, completion without special tokens) → a number."""

ENOUGH = 2  # words of one register that a review needs for a full score
SHORT, LONG = 10, 50  # number of words with brevity 1 and −1
_WORD = re.compile(r"[a-z]+")


def words_of(text: str) -> list[str]:
    """The lower-case words of a text."""
    return _WORD.findall(text.lower())


def sentiment(prompt: str, completion: str) -> float:
    """Mean polarity of the opinion words, Σ p(w) / #w; 0 without any."""
    polarities = [POLARITY[word] for word in words_of(completion) if word in POLARITY]
    return sum(polarities) / len(polarities) if polarities else 0.0


def formality(prompt: str, completion: str) -> float:
    """(formal − casual) / max(formal + casual, `ENOUGH`) words."""
    words = words_of(completion)
    formal = sum(word in FORMAL for word in words)
    casual = sum(word in CASUAL for word in words)
    return (formal - casual) / max(formal + casual, ENOUGH)


def brevity(prompt: str, completion: str) -> float:
    """1 up to `SHORT` words, −1 from `LONG` words, linear in between."""
    count = len(words_of(completion))
    return max(-1.0, min(1.0, 1.0 - 2.0 * (count - SHORT) / (LONG - SHORT)))


rewards: dict[str, TextReward] = {
    "sentiment": sentiment,
    "formality": formality,
    "brevity": brevity,
}
REWARD_MAX: dict[str, float] = dict.fromkeys(rewards, 1.0)
