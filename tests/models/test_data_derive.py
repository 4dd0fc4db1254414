"""Sets made of sets: preferences, rankings, validation parts; and the cutting of long rows."""

import json
import logging
import math
import random
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab_models import data
from trimtab_models.data import Record
from trimtab_models.objectives.distribution import importance
from trimtab_models.objectives.td_lambda import TdLambda
from trimtab_models.rows import Pair, Ranked, Rollout, pad


def _records(rewards: dict[str, list[float]]) -> list[Record]:
    """Rollouts "a0", "a1", ... of prompt "a" with the rewards given."""
    return [
        {
            "prompt": prompt,
            "completion": f"{prompt}{i}",
            "reward": value,
            "prompt_token_ids": [1],
            "completion_token_ids": [i],
        }
        for prompt, values in rewards.items()
        for i, value in enumerate(values)
    ]


def test_preferences_pair_unequal_rollouts_of_one_prompt() -> None:
    records = _records({prompt: [0.0, 1.0, 1.0, 2.0] for prompt in "ab"})
    rewards = {record["completion"]: record["reward"] for record in records}
    made = data.preferences(records, 100, seed=0)
    assert len(made) == 2 * 5  # of six pairs a prompt one is a tie
    for record in made:
        assert rewards[record["chosen"]] > rewards[record["rejected"]]
        assert record["chosen"][0] == record["rejected"][0] == record["prompt"]
        assert record["prompt_token_ids"] == [1]
        assert record["chosen_token_ids"] == [int(record["chosen"][1])]
    assert len(data.preferences(records, 3, seed=1)) == 3
    assert json.dumps(made)


def test_preferences_need_no_ids() -> None:
    records = [
        {"prompt": [{"role": "user", "content": "a"}], "completion": text, "label": label}
        for text, label in (("bad", False), ("good", True))
    ]
    assert data.preferences(records, 9, seed=0) == [
        {"prompt": records[0]["prompt"], "chosen": "good", "rejected": "bad"}
    ]


def test_a_judge_errs_as_bradley_terry_says() -> None:
    records = _records({str(prompt): [0.75, 0.25] for prompt in range(4000)})
    for sharpness, expected in ((math.inf, 1.0), (4.0, 1 / (1 + math.exp(-4 * 0.5))), (0.0, 0.5)):
        made = data.preferences(records, 4000, 0, sharpness)
        share = sum(record["chosen_token_ids"] == [0] for record in made) / len(made)
        assert share == pytest.approx(expected, abs=0.03), sharpness
        assert all(sorted(r["chosen_token_ids"] + r["rejected_token_ids"]) == [0, 1] for r in made)


def test_a_rollout_without_reward_is_named() -> None:
    records = [*_records({"a": [0.0, 1.0]}), {"prompt": "a", "completion": "b"}]
    for make in (
        lambda: data.preferences(records, 3, seed=0),
        lambda: data.rankings(records, 2, seed=0),
    ):
        with pytest.raises(ValueError, match=r"1 of 3 rows .*record 2: .*'reward' nor 'label'"):
            make()


def test_a_ranking_by_hand() -> None:
    records = _records({"a": [0.5, 2.0, 0.5, 1.0], "b": [1.0, 1.0, 1.0]})
    (one,) = data.rankings(records, 3, seed=0)
    tied = one["completions"][2]
    assert tied in ("a0", "a2")
    assert one == {
        "prompt": "a",
        "prompt_token_ids": [1],
        "completions": ["a1", "a3", tied],
        "completions_token_ids": [[1], [3], [int(tied[1])]],
    }
    seen = {data.rankings(records, 3, seed=seed)[0]["completions"][2] for seed in range(20)}
    assert seen == {"a0", "a2"}
    with pytest.raises(ValueError, match="no prompt has 4 rollouts of different rewards"):
        data.rankings(records, 4, seed=0)
    with pytest.raises(ValueError, match="two completions or more"):
        data.rankings(records, 1, seed=0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=14), st.integers(2, 4), st.integers())
def test_rankings_are_as_many_as_can_be(rewards: list[int], k: int, seed: int) -> None:
    records = _records({"a": [float(value) for value in rewards]})
    # L disjoint rankings exist if and only if the ties, each used at most L times, fill L·k places.
    ties = Counter(rewards).values()
    most = max(n for n in range(len(rewards)) if sum(min(tie, n) for tie in ties) >= k * n)
    if not most:
        with pytest.raises(ValueError, match="no prompt has"):
            data.rankings(records, k, seed)
        return
    made = data.rankings(records, k, seed)
    assert len(made) == most
    used = [ids[0] for record in made for ids in record["completions_token_ids"]]
    assert len(used) == len(set(used))
    for record in made:
        values = [rewards[ids[0]] for ids in record["completions_token_ids"]]
        assert len(values) == k
        assert all(better > worse for better, worse in pairwise(values))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=40).filter(lambda ids: len(set(ids)) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 99),
)
def test_a_split_shares_no_prompt(prompts: list[int], fraction: float, seed: int) -> None:
    items = [Rollout([prompt], [i], 0.0) for i, prompt in enumerate(prompts)]
    train, validation = data.split(items, fraction, seed)
    sides = [{item.prompt[0] for item in part} for part in (train, validation)]
    assert not sides[0] & sides[1]
    assert sorted(train + validation, key=lambda item: item.completion) == items
    n = len(set(prompts))
    assert len(sides[1]) == min(max(round(fraction * n), 1), n - 1)
    # Items of one prompt more, or another order, move no prompt to the other side.
    again = random.Random(seed).sample(items, len(items)) + items[:1]
    assert {item.prompt[0] for item in data.split(again, fraction, seed)[1]} == sides[1]


def test_a_split_of_records() -> None:
    records = _records({prompt: [0.0, 1.0] for prompt in "abcdefgh"})
    parts = {json.dumps(data.split(records, 0.25, seed)[1]) for seed in range(8)}
    assert len(parts) > 1
    train, validation = data.split(records, 0.25, 0)
    assert (len(train), len(validation)) == (12, 4)
    for bad in (0, 1, -0.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            data.split(records, bad, 0)
    with pytest.raises(ValueError, match="two prompts"):
        data.split(records[:2], 0.5, 0)
    with pytest.raises(ValueError, match="no 'prompt'"):
        data.split([{"chosen": "a"}, {"chosen": "b"}], 0.5, 0)


def test_a_prompt_is_cut_on_the_left_before_a_completion_on_the_right(
    caplog: pytest.LogCaptureFixture,
) -> None:
    items = [
        Rollout([1, 2], [3, 4], 0.5),  # fits
        Rollout([1, 2, 3, 4], [5, 6, 7], 1.0),  # the prompt gives way
        Rollout([1, 2, 3, 4], [5, 6, 7, 8, 9], 1.0),  # down to half, then the completion
        Rollout([1], [5, 6, 7, 8, 9, 10, 11], 1.0),  # a short prompt stays
    ]
    with caplog.at_level(logging.WARNING):
        assert data.shorten(items, 6) == [
            items[0],
            Rollout([2, 3, 4], [5, 6, 7], 1.0),
            Rollout([2, 3, 4], [5, 6, 7], 1.0),
            Rollout([1], [5, 6, 7, 8, 9], 1.0),
        ]
    (said,) = caplog.messages
    assert (
        "of 4 items, 2 prompts are cut on the left and 2 completions on the right; 0 items" in said
    )
    caplog.clear()
    assert data.shorten(items, 9) == items
    assert not caplog.messages


def test_what_no_longer_differs_is_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    same, other = Pair([1], [2, 3, 4], [2, 3, 5]), Pair([1], [2, 4, 4], [2, 3])
    with caplog.at_level(logging.WARNING):
        assert data.shorten([same, other], 3) == [Pair([1], [2, 4], [2, 3])]
    assert "1 items are left out" in caplog.messages[0]
    ranking = Ranked([1, 2, 3], [[4], [5, 6], [7]])
    assert data.shorten([ranking], 4) == [Ranked([2, 3], ranking.completions)]
    with pytest.raises(ValueError, match="no item remains at max_length 2"):
        data.shorten([same], 2)
    with pytest.raises(ValueError, match="need 2 tokens"):
        data.shorten([other], 1)


_ids = st.lists(st.integers(0, 3), min_size=1, max_size=9)


@settings(max_examples=200, deadline=None)
@given(_ids, st.lists(_ids, min_size=2, max_size=3, unique_by=tuple), st.integers(2, 20))
def test_cut_rows_fit_and_are_cut_no_more_than_they_must(
    prompt: list[int], completions: list[list[int]], limit: int
) -> None:
    (whole,) = data.shorten([Rollout(prompt, completions[0], 1.0)], limit)
    assert prompt[-len(whole.prompt) :] == whole.prompt
    assert completions[0][: len(whole.completion)] == whole.completion
    total = len(whole.prompt) + len(whole.completion)
    assert total == min(limit, len(prompt) + len(completions[0]))
    if len(whole.completion) < len(completions[0]):
        assert len(whole.prompt) == min(len(prompt), limit // 2)
    try:
        (item,) = data.shorten([Ranked(prompt, completions)], limit)
    except ValueError:
        room = limit - min(len(prompt), limit // 2)
        assert len({tuple(side[:room]) for side in completions}) < len(completions)
        return
    longest = max(map(len, completions))
    assert len(item.prompt) + min(longest, max(map(len, item.completions))) <= limit
    assert len(item.prompt) == min(len(prompt), max(limit // 2, limit - longest))
    for side, cut in zip(completions, item.completions, strict=True):
        assert cut == side[: limit - len(item.prompt)]


def test_a_cut_answer_is_weighed_as_the_whole_one() -> None:
    """Its guidance stays known: what was cut off counts in the importance of what is left."""
    guided = Rollout([1, 2, 3], [4, 5, 6, 7, 8], 0.5, 2.0, (0.5, -0.25, 1.0, 0.75, -0.5))
    (cut,) = data.shorten([guided], 5)
    assert cut == Rollout([2, 3], [4, 5, 6], 0.5, 2.0, (0.5, -0.25, 1.0), 0.25)
    (again,) = data.shorten([cut], 4)
    assert again == Rollout([2, 3], [4, 5], 0.5, 2.0, (0.5, -0.25), 1.25)
    tilt = 2.0 * torch.linspace(-1, 1, 3).view(1, 1, 3)
    log_p = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    whole = importance(log_p[None], tilt, pad([guided], 0))
    assert importance(log_p[None, :3], tilt, pad([cut], 0)).equal(whole[:, :3])
    forgotten = importance(log_p[None, :3], tilt, pad([cut._replace(rest=0.0)], 0))
    assert not forgotten.allclose(whole[:, :3]), "the control"


def test_a_cut_guided_answer_does_not_pass_for_the_bases() -> None:
    guided = Rollout([1, 2, 3], [4, 5, 6, 7, 8], 0.5, 2.0)
    for items in ([guided], data.shorten([guided], 5)):
        with pytest.raises(ValueError, match="sampled with guidance"):
            TdLambda().collate(items, 0)


def test_rollouts_of_unlike_prompts_are_not_compared() -> None:
    """The same words with other tools, or other ids, are another prompt."""
    tools = [{"type": "function", "function": {"name": "price"}}]
    records = _records({"a": [0.0, 1.0]})
    assert len(data.preferences(records, 9, 0)) == 1
    for other in ({"tools": tools}, {"prompt_token_ids": [2]}):
        apart = [records[0], {**records[1], **other}]
        assert data.preferences(apart, 9, 0) == []
    (made,) = data.preferences([{**r, "tools": tools, "source": "x"} for r in records], 9, 0)
    assert made["tools"] == tools
    assert made["source"] == "x"


def test_ties_are_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "trimtab_models")
    records = _records({"a": [0.0, 1.0, 1.0, 1.0], "b": [2.0, 2.0]})
    data.preferences(records, 9, 0)
    assert caplog.messages == [
        "of 7 pairs of rollouts 4 have equal rewards and are left out.",
    ]
    caplog.clear()
    data.rankings(records, 2, 0)
    (said,) = caplog.messages
    assert said.startswith("1 rankings of 2 rollouts; 4 rollouts are left out")
