"""A seeded grammar of short product and place reviews, and the prompts that request them.

Every review samples a mood, a register and a number of sentences; these make some words more likely
in every sentence. So a review's opening predicts its end to a degree, and every prefix contains
evidence for a scorer.
"""

import random
from collections.abc import Callable

from trimtab_models.demo.words import (
    ASPECTS,
    BAD,
    CASUAL_ADVERBS,
    FORMAL_ADVERBS,
    GOOD,
    PLACES,
    PLAIN,
)

KINDS = tuple(ASPECTS)
MOODS = (0.15, 0.5, 0.85)  # chance of a good word
REGISTERS = (0.25, 0.5, 0.75)  # chance of a formal sentence
MOST_SENTENCES = 7

FORMS_OF_ASKING = (
    "Write a review of the {}.",
    "Please review the {}.",
    "What did you think of the {}?",
    "Tell me about the {}.",
    "How was the {}?",
    "Share your opinion of the {}.",
    "Would you describe the {}?",
    "Give me your view of the {}.",
)
QUALITIES = ("", "new ", "local ", "old ", "small ", "popular ")


class Voice:
    """The speaker of one review: mood, register, and a queue of aspects to mention."""

    def __init__(self, kind: str, draw: random.Random) -> None:
        self.kind, self.draw = kind, draw
        self.place = kind in PLACES
        self.good = draw.choice(MOODS)
        self.formal = draw.choice(REGISTERS)
        self.aspects = draw.sample(ASPECTS[kind], 3)

    def aspect(self) -> str:
        """The next part of the thing, in rotation."""
        self.aspects.append(self.aspects.pop(0))
        return self.aspects[-1]

    def either(self, good: str, bad: str) -> str:
        """One of two opposite words, according to the mood."""
        return good if self.draw.random() < self.good else bad

    def quality(self) -> str:
        """An adjective according to the mood; sometimes a neutral one."""
        if self.draw.random() < 0.1:
            return self.draw.choice(PLAIN)
        return self.draw.choice(GOOD if self.draw.random() < self.good else BAD)


def _formal_opening(v: Voice) -> str:
    verb = "visited" if v.place else "purchased"
    feeling = v.either(v.draw.choice(("delighted", "impressed")), "disappointed")
    return f"I recently {verb} this {v.kind} and was {feeling}."


def _casual_opening(v: Voice) -> str:
    verb = "tried" if v.place else "got"
    feeling = v.either("delighted", v.draw.choice(("disappointed", "annoyed")))
    return f"Just {verb} this {v.kind} and wow, I was {feeling}."


def _formal_adjective(v: Voice) -> str:
    return f"The {v.aspect()} was {v.draw.choice(FORMAL_ADVERBS)} {v.quality()}."


def _casual_adjective(v: Voice) -> str:
    return f"The {v.aspect()} was {v.draw.choice(CASUAL_ADVERBS)} {v.quality()}."


def _formal_addition(v: Voice) -> str:
    start = v.draw.choice(("Furthermore", "Moreover"))
    return f"{start}, I found the {v.aspect()} to be {v.quality()}."


def _casual_addition(v: Voice) -> str:
    start = v.draw.choice(("Honestly", "Gotta say"))
    return f"{start}, the {v.aspect()} felt {v.quality()} to me."


def _formal_contrast(v: Voice) -> str:
    first, second = v.aspect(), v.aspect()
    return f"Although the {first} was {v.quality()}, the {second} was {v.quality()}."


def _casual_contrast(v: Voice) -> str:
    first, second = v.aspect(), v.aspect()
    return f"Sure, the {first} was {v.quality()}, but the {second} was {v.quality()}."


def _formal_experience(v: Voice) -> str:
    if v.place:
        return f"We were treated with considerable {v.either('kindness', 'rudeness')} there."
    return f"It has worked with considerable {v.either('ease', 'trouble')} so far."


def _casual_experience(v: Voice) -> str:
    if v.place:
        return f"They treated us with tons of {v.either('kindness', 'rudeness')} there."
    return f"It has worked with tons of {v.either('ease', 'trouble')} so far."


def _formal_detail(v: Voice) -> str:
    if v.place:
        return f"It is situated near the {v.draw.choice(('station', 'river', 'market'))}."
    return f"It arrived via courier in {v.draw.choice(('two', 'three', 'four'))} days."


def _casual_detail(v: Voice) -> str:
    if v.place:
        return f"It is by the {v.draw.choice(('station', 'river', 'market'))}, okay."
    return f"It came in {v.draw.choice(('two', 'three', 'four'))} days, yep."


def _formal_price(v: Voice) -> str:
    return f"The price was {v.either('fair', 'excessive')}, considering the {v.aspect()}."


def _casual_price(v: Voice) -> str:
    return f"The price was {v.either('fair', 'excessive')}, guys."


def _formal_closing(v: Voice) -> str:
    verb = v.either("recommend", "avoid")
    if v.draw.random() < 0.5:
        return f"I would therefore {verb} it without reservation."
    return f"In conclusion, I would {verb} this {v.kind}."


def _casual_closing(v: Voice) -> str:
    if v.draw.random() < 0.5:
        return f"Anyway, I {v.either('love', 'regret')} it, lol."
    return f"Yeah, I would {v.either('recommend', 'avoid')} it, folks."


Sentence = Callable[[Voice], str]
_OPENINGS: tuple[Sentence, Sentence] = (_formal_opening, _casual_opening)
_BODIES: tuple[tuple[Sentence, Sentence], ...] = (
    (_formal_adjective, _casual_adjective),
    (_formal_addition, _casual_addition),
    (_formal_contrast, _casual_contrast),
    (_formal_experience, _casual_experience),
    (_formal_detail, _casual_detail),
    (_formal_price, _casual_price),
)
_CLOSINGS: tuple[Sentence, Sentence] = (_formal_closing, _casual_closing)


def review(kind: str, draw: random.Random, most: int = MOST_SENTENCES) -> str:
    """A review of a thing of this kind, with 1 to `most` sentences."""
    voice = Voice(kind, draw)
    count = draw.randint(1, most)
    bodies = draw.sample(_BODIES, count - 1)
    plan = [_OPENINGS if draw.random() < 0.7 else _BODIES[0], *bodies]
    if count > 1 and draw.random() < 0.6:
        plan[-1] = _CLOSINGS
    said = [pair[0 if draw.random() < voice.formal else 1](voice) for pair in plan]
    return " ".join(said)


def every_prompt() -> list[str]:
    """All requests of this world, in a fixed order."""
    return [
        form.format(quality + kind)
        for kind in KINDS
        for quality in QUALITIES
        for form in FORMS_OF_ASKING
    ]


def prompts(split: str, n: int, seed: int = 0) -> list[str]:
    """Sample n user messages of a split, without repeats until the split is used up.

    Args:
        split: "train" (four fifths of all requests) or "test" (the rest, in no training data).
        n: number of messages.
        seed: of the sample; the split itself never changes.

    Raises:
        ValueError: the split is neither of the two.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    everything = every_prompt()
    random.Random(0).shuffle(everything)
    cut = len(everything) * 4 // 5
    pool = everything[:cut] if split == "train" else everything[cut:]
    draw = random.Random(seed)
    drawn: list[str] = []
    while len(drawn) < n:
        drawn += draw.sample(pool, min(len(pool), n - len(drawn)))
    return drawn


def kind_in(prompt: str) -> str:
    """The kind of thing that a prompt of this world asks about."""
    return next(word for word in prompt.rstrip("?.").split() if word in ASPECTS)
