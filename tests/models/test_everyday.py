"""Everyday prompts and their rewards: kindness, plainness and brevity."""

import pytest

from hostile import HOSTILE
from trimtab_models import rewards as loading
from trimtab_models.smollm2 import prompts
from trimtab_models.smollm2.rewards import ENOUGH, WORDS, brevity, kindness, plainness

REWARDS = (kindness, plainness, brevity)


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_reward_of_any_text_is_a_number_between_its_ends(reward, text):
    value = reward("Say something.", text)
    assert isinstance(value, float)
    assert -1 <= value <= 1
    assert value == reward("another prompt", text), "only the answer counts"


@pytest.mark.parametrize(
    ("text", "compound"),
    [
        # The first two are examples of VADER's own documentation.
        ("VADER is smart, handsome, and funny.", 0.8316),
        ("VADER is not smart, handsome, nor funny.", -0.7424),
        ("The table has four legs.", 0.0),
    ],
)
def test_kindness_is_vaders_compound(text, compound):
    assert kindness("", text) == pytest.approx(compound, abs=1e-4)


def test_plainness_is_fleschs_formula():
    text = "The cat sat on the mat. The dog ran to the big red barn."  # 14 words, 2 sentences
    ease = 206.835 - 1.015 * 14 / 2 - 84.6 * 14 / 14
    assert ease > 100
    assert plainness("", text) == 1, "easier than the scale's end"
    hard = "Institutional considerations notwithstanding, bureaucratic rationalisation continues."
    assert plainness("", hard) == -1
    # in-for-ma-tion has 4 syllables, is-sue 2, and the other six words one each
    middle = "We can read the information on that issue."
    ease = 206.835 - 1.015 * 8 - 84.6 * 12 / 8
    assert plainness("", middle) == pytest.approx(2 * ease / 100 - 1)


def test_a_few_words_are_neither_plain_nor_hard():
    assert plainness("", "?!") == 0
    values = [plainness("", " ".join(["cat"] * n)) for n in range(1, ENOUGH + 2)]
    assert values == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


@pytest.mark.parametrize(
    ("count", "wanted"), [(0, 1.0), (WORDS // 2, 0.0), (WORDS, -1.0), (9 * WORDS, -1.0)]
)
def test_brevity_falls_with_every_word(count, wanted):
    assert brevity("", "word " * count) == wanted


@pytest.mark.parametrize("name", ["kindness", "plainness", "brevity"])
def test_they_are_rewards_of_a_rollout(name):
    reward = loading.load(f"trimtab_models.smollm2.rewards:{name}")
    chat = [{"role": "user", "content": "How was your day?"}]
    said = [{"role": "assistant", "content": "Good and calm, thank you."}]
    [text, turns] = loading.label(
        reward,
        [
            {"prompt": "How was your day?", "completion": "Good and calm, thank you."},
            {"prompt": chat, "completion": said},
        ],
    )
    assert text == turns > 0


def test_prompts_are_distinct_and_none_is_in_both_splits():
    test, train = prompts.prompts("test", 10**6, 0), prompts.prompts("train", 10**6, 0)
    assert len(set(test)) == len(test) == 50
    assert len(set(train)) == len(train) >= 400
    plain = [{text.casefold().rstrip(".?! ") for text in part} for part in (test, train)]
    assert not plain[0] & plain[1]
    assert all("{" not in text and text == text.strip() for text in test + train)


def test_the_seed_decides_the_order_of_prompts():
    assert prompts.prompts("train", 30, 1) == prompts.prompts("train", 30, 1)
    assert prompts.prompts("train", 30, 1) != prompts.prompts("train", 30, 2)
    assert sorted(prompts.prompts("test", 50, 1)) == sorted(prompts.TEST)
    with pytest.raises(ValueError, match="'train' or 'test'"):
        prompts.prompts("validation", 1, 0)
