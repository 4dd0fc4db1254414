"""Pairs with measured odds: read, cut, and refused."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from trimtab_models import data, demo
from trimtab_models.rows import Pair

TOKENIZER = AutoTokenizer.from_pretrained(demo.base())
EOS: int = TOKENIZER.eos_token_id
RECORD = {
    "prompt": "a",
    "prompt_token_ids": [4],
    "chosen": "b",
    "chosen_token_ids": [5, 6, 7, 8, EOS, 9],  # cut after its EOS
    "rejected": "c",
    "rejected_token_ids": [5, 10, 11, 12],
    "score_chosen": 0.5,
    "score_rejected": 0.5,
    "odds": [[1, 1, 0.5], [2, 2, 0.75], [6, 4, 1]],
}


def test_odds_are_read_with_the_rewards_even_of_a_tie() -> None:
    (pair,) = data.pairs([RECORD], TOKENIZER)
    assert pair == Pair(
        [4], [5, 6, 7, 8, EOS], [5, 10, 11, 12], (0.5, 0.5), ((1, 1, 0.5), (2, 2, 0.75), (5, 4, 1))
    )
    (better,) = data.pairs([{**RECORD, "score_chosen": 0.25}], TOKENIZER)
    assert better.rewards == (0.25, 0.5)


def test_without_odds_ties_are_left_out_and_rewards_are_kept() -> None:
    plain = {name: value for name, value in RECORD.items() if name != "odds"}
    assert data.pairs([plain, {**plain, "odds": None}], TOKENIZER) == []
    (pair,) = data.pairs([{**plain, "score_chosen": 2}], TOKENIZER)
    assert (pair.rewards, pair.odds) == ((2.0, 0.5), ())
    with pytest.raises(ValueError, match="the best completion must be first"):
        data.pairs([{**plain, "score_chosen": 0}], TOKENIZER)


@pytest.mark.parametrize(
    "odds",
    [
        0.5,
        [0.5],
        [[1, 0.5]],
        [[0, 1, 0.5]],
        [[7, 1, 0.5]],
        [[1, 5, 0.5]],
        [[1, 1, 1.5]],
        [[1, 1, -0.1]],
        [[1, 1, True]],
        [[1.0, 1, 0.5]],
        [[1, 1, 0.5, 1]],
        [[1, 1, "0.5"]],
        [[1, 1, None]],
    ],
)
def test_what_are_no_odds_are_refused(odds: Any) -> None:
    with pytest.raises(ValueError, match="'odds' is not a list of"):
        data.pairs([{**RECORD, "odds": odds}], TOKENIZER)


@pytest.mark.parametrize("lost", ["chosen_token_ids", "rejected_token_ids"])
def test_odds_without_sampled_tokens_are_refused(lost: str) -> None:
    record = {name: value for name, value in RECORD.items() if name != lost}
    with pytest.raises(ValueError, match="'odds' count tokens, so they need"):
        data.pairs([record], TOKENIZER)


def test_a_cut_pair_keeps_its_odds_at_what_remains() -> None:
    (pair,) = data.pairs([RECORD], TOKENIZER)
    (cut,) = data.shorten([pair], 4)
    assert (cut.chosen, cut.rejected) == ([5, 6, 7], [5, 10, 11])
    assert cut.odds == ((1, 1, 0.5), (2, 2, 0.75), (3, 3, 1.0))
    assert cut.rewards == pair.rewards
