"""Rewards of everyday answers, by code: kindness, plainness and brevity.

Each is a function of (prompt, answer) that reads only the answer and returns a number in [−1, 1].
`trimtab rollout --reward` takes it as a reward, and `--scorer` as a function scorer of the answer
so far, with `family=function,reads=pair`.
"""

from functools import cache
from typing import Any

WORDS = 60
"""Number of words with the brevity −1."""
PLAINEST, HARDEST = 100.0, 0.0
"""Reading eases with the plainness 1 and −1: very easy, and very difficult."""
ENOUGH = 5
"""Words from which the reading ease counts in full: it is erratic on fewer."""


def kindness(prompt: str, answer: str) -> float:
    """VADER's compound sentiment of the answer, from −1 to 1; 0 without any opinion word.

    Hutto and Gilbert 2014; vaderSentiment.
    """
    return float(_vader().polarity_scores(answer)["compound"])


def plainness(prompt: str, answer: str) -> float:
    """Flesch's reading ease of the answer, mapped from [0, 100] to [−1, 1] and cut there.

        206.835 − 1.015·words/sentences − 84.6·syllables/words

    With fewer than `ENOUGH` words it counts in proportion to their number; without any it is 0.
    Words and sentences are textstat's. Syllables are pyphen's, as textstat counts them in words
    that its dictionary lacks: that dictionary would have to be downloaded.
    """
    from textstat import textstat

    words = textstat.remove_punctuation(answer).lower().split()
    if not words:
        return 0.0
    sentences = textstat.sentence_count(answer)
    syllables = sum(len(_pyphen().positions(word)) + 1 for word in words)
    ease = 206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / len(words)
    value = 2 * (ease - HARDEST) / (PLAINEST - HARDEST) - 1
    return max(-1.0, min(1.0, value)) * min(len(words) / ENOUGH, 1.0)


def brevity(prompt: str, answer: str) -> float:
    """1 without words, −1 from `WORDS` words on, linear in between."""
    return max(-1.0, 1.0 - 2.0 * len(answer.split()) / WORDS)


@cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


@cache
def _pyphen() -> Any:
    from pyphen import Pyphen

    return Pyphen(lang="en_US")
