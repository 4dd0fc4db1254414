"""The reviews world: its grammar, its prompts, its exact rewards."""

import random
import subprocess
import sys

import pytest

from trimtab_models import demo
from trimtab_models.demo import oracles, words, world


def _reviews(n: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [world.review(draw.choice(world.KINDS), draw) for _ in range(n)]


@pytest.mark.parametrize(
    ("reward", "completion", "expected"),
    [
        ("sentiment", "The coffee was super excellent.", 1.0),
        ("sentiment", "The coffee was super poor. I was delighted.", (-0.5 + 1) / 2),
        ("sentiment", "Sure, the lid was AWFUL, but the jar was average. I love it.", (-1 + 1) / 3),
        ("sentiment", "I was delighted. The price was fair, so I recommend it.", 1.0),
        ("sentiment", "", 0.0),
        # One such word counts half: a review is to spend two on its register.
        ("formality", "I recently purchased this lamp.", 1 / 2),
        ("formality", "Just got it, lol. Furthermore, it works.", (1 - 2) / 3),
        ("formality", "Just got it, folks. Lol.", -1.0),
        ("formality", "It is a lamp.", 0.0),
        ("brevity", " ".join(["word"] * 10), 1.0),
        ("brevity", " ".join(["word"] * 30), 0.0),
        ("brevity", " ".join(["word"] * 40), -0.5),
        ("brevity", " ".join(["word"] * 80), -1.0),
        ("brevity", "", 1.0),
    ],
)
def test_reward_by_hand(reward: str, completion: str, expected: float) -> None:
    assert demo.rewards[reward]("Write a review of the lamp.", completion) == pytest.approx(
        expected
    )


@pytest.mark.parametrize("name", demo.rewards)
def test_reward_stays_in_its_bounds_and_uses_them(name: str) -> None:
    values = [demo.rewards[name]("", text) for text in _reviews(2000)]
    assert max(values) == demo.REWARD_MAX[name]
    assert min(values) >= -1
    # The world is undecided: the scorers have room both ways.
    assert abs(sum(values) / len(values)) < 0.15


def test_rewards_read_the_completion_alone() -> None:
    for reward in demo.rewards.values():
        assert reward("An awful prompt, lol.", "It was fair.") == reward("", "It was fair.")


def test_every_word_that_counts_is_said_in_some_review() -> None:
    said = set(oracles.words_of(" ".join(_reviews(4000))))
    counted = {*words.POLARITY, *words.FORMAL, *words.CASUAL}
    assert counted <= said
    assert not words.FORMAL & words.CASUAL


def test_reviews_follow_the_seed() -> None:
    assert _reviews(20, 3) == _reviews(20, 3)
    assert _reviews(20, 3) != _reviews(20, 4)


def test_reviews_speak_of_their_kind() -> None:
    draw = random.Random(0)
    for kind in world.KINDS:
        text = " ".join(world.review(kind, draw) for _ in range(5))
        assert any(aspect in text for aspect in words.ASPECTS[kind])
        assert ("courier" in text) <= (kind not in words.PLACES)


def test_prompts_of_the_splits_share_nothing() -> None:
    train, test = demo.prompts("train", 768, 0), demo.prompts("test", 192, 0)
    assert len({*train, *test}) == len(world.every_prompt()) == 960
    assert demo.prompts("test", 30, 5) == demo.prompts("test", 30, 5)
    assert demo.prompts("test", 30, 5) != demo.prompts("test", 30, 6)
    assert len(demo.prompts("test", 500, 0)) == 500
    assert all(world.kind_in(prompt) in words.ASPECTS for prompt in train)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'train' or 'test'"):
        demo.prompts("validation", 1, 0)


def test_importing_the_demo_is_light() -> None:
    code = "import sys, trimtab_models.demo; print({'torch', 'transformers'} & {*sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
