"""Three users' planted weights from 30 comparisons of the demo's reviews, by its real scorers."""

import random

import numpy as np
import pytest
from transformers import AutoTokenizer

from trimtab import Guidance
from trimtab.errors import InvalidRequest
from trimtab.taste import Comparison, Question, learn
from trimtab_models import demo
from trimtab_models.demo.world import kind_in, review

USERS = {
    "warm and brief": {"sentiment": 2.0, "formality": 0.0, "brevity": 1.0},
    "stiff": {"sentiment": 0.5, "formality": 2.0, "brevity": -0.5},
    "a grumbler": {"sentiment": -2.0, "formality": -1.0, "brevity": 0.0},
}
"""Weights in units of how much answers to one prompt differ."""
COMPARISONS, REPEATS, LEVEL = 30, 15, 0.9


@pytest.fixture(scope="module")
def guidance():
    return Guidance(demo.scorers(), AutoTokenizer.from_pretrained(demo.base()))


@pytest.fixture(scope="module")
def scored(guidance):
    """Two reviews of each prompt, and their scores."""
    draw = random.Random(0)
    scores = {}
    for prompt in demo.prompts("test", COMPARISONS):
        answers = [review(kind_in(prompt), draw) for _ in range(2)]
        turns = [{"role": "user", "content": prompt}]
        question = Question(turns=(("user", prompt),))
        of = guidance.score_answers(turns, answers)
        scores |= {(question, a): s for a, s in zip(answers, of, strict=True)}
    return scores


@pytest.mark.slow
def test_planted_weights_are_in_their_intervals(guidance, scored):
    deviations = {n: s.info.deviation for n, s in guidance.guide.registry.scorers.items()}
    prompts = list(dict.fromkeys(question for question, _ in scored))
    pairs = [[a for q, a in scored if q == question] for question in prompts]
    names = list(deviations)
    differences = np.array(
        [
            [scored[q, a][n] - scored[q, b][n] for n in names]
            for q, (a, b) in zip(prompts, pairs, strict=True)
        ]
    )
    units = np.sqrt((differences**2).mean(0) / 2)
    covered, signs = [], []
    for number, planted in enumerate(USERS.values()):
        utility = differences / units @ np.array([planted[name] for name in names])
        draws = np.random.default_rng(number)
        for seed in range(REPEATS):
            first = draws.random(COMPARISONS) < 1 / (1 + np.exp(-utility))
            comparisons = [
                Comparison(
                    messages=[{"role": "user", "content": q.turns[0][1]}],
                    answers=answers,
                    choice=int(not won),
                )
                for q, answers, won in zip(prompts, pairs, first, strict=True)
            ]
            fitted = learn(comparisons, [], scored, deviations, {"beta": 1.0}, seed=seed)
            for name, unit in zip(names, units, strict=True):
                weight = planted[name] * deviations[name] / unit
                low, high = fitted.fields["weights"][name]["interval"]
                covered.append(low <= weight <= high)
                if weight and not low <= 0 <= high:
                    signs.append((low > 0) == (weight > 0))
    # Weights are fixed, not from the prior, so the level holds only nearly.
    assert np.mean(covered) > LEVEL - 0.05
    assert len(signs) > 50
    assert np.mean(signs) > 0.98


def test_answers_of_a_prompt_are_scored_like_whole_texts(guidance):
    """The end token is the demo's; without a template, the prompt is a text."""
    end = guidance.tokenizer.eos_token
    text, answers = "The room was", [" clean.", " dirty and loud."]
    own = guidance.score_answers(text, answers)
    whole = guidance.score([f"{text}{answer}{end}" for answer in answers])
    for name, values in whole.items():
        assert [one[name] for one in own] == pytest.approx(values, abs=1e-4)
    assert guidance.score_answers(text, []) == []
    with pytest.raises(InvalidRequest, match="no token"):
        guidance.score_answers("", answers)
    with pytest.raises(InvalidRequest, match="more than 8192 tokens"):
        guidance.score_answers(text, ["long " * 9000])
