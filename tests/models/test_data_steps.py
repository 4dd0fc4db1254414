"""Rewards of steps in the data: where they arrive, what they add up to, and what is refused."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trimtab_models import data, demo
from trimtab_models.data import Record
from trimtab_models.data.encoding import Encoder
from trimtab_models.data.formats import FORMATS
from trimtab_models.rows import Rollout, pad, remaining

TOKENIZER: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(demo.base())
EOS: int = TOKENIZER.eos_token_id
TEXT = "The room was lovely, and the staff was rude."
IDS = {"prompt": "How?", "completion_token_ids": [11, 12, 13, EOS]}
SPAN = {"start": 4, "end": 19, "value": 1.0}
ASPECTS = [{**SPAN, "aspect": "room"}, {"start": 25, "end": 43, "value": -2.0, "aspect": "staff"}]


def _one(record: Record, aspect: str | None = None) -> Rollout:
    item: Rollout = FORMATS["rollouts"](record, Encoder(TOKENIZER, aspect))
    return item


def test_a_position_is_a_number_of_tokens() -> None:
    one = _one({**IDS, "rewards": [[1, 0.5], [3, -1], [1, 0.25], [4, 2]], "reward": 4})
    assert one.step_rewards == (0.75, 0.0, -1.0, 2.0)
    assert one.label == 5.75
    # From each token on, with its own reward; the reward of the answer comes at the end.
    assert remaining(one) == [5.75, 5.0, 5.0, 6.0]
    rows = pad([one, Rollout([1], [2], 3.0)], 0)
    assert rows.to_go()[:, 0].tolist() == [5.75, 3.0]
    assert rows.to_go()[0].tolist() == remaining(one)


def test_steps_may_be_the_only_rewards() -> None:
    one = _one({**IDS, "rewards": [[2.0, 1.5]]})  # a column of a data set has one type
    assert (one.label, one.step_rewards) == (1.5, (0.0, 1.5, 0.0, 0.0))
    none = _one({**IDS, "rewards": []})
    assert (none.label, none.step_rewards) == (0.0, (0.0,) * 4)


def test_other_rewards_of_the_whole_answer_are_not_of_steps() -> None:
    one = _one({**IDS, "rewards": {"taste": 5.0}, "reward": 1})
    assert (one.label, one.step_rewards) == (1.0, ())


@pytest.mark.parametrize("text", [TEXT, "  Bad.\n\nThe cafe was 😀 rude. ", "Ünïcödé"])
def test_a_span_arrives_with_the_token_that_completes_it(text: str) -> None:
    """The reference: the tokenizer's own offsets."""
    encoded = TOKENIZER(text, add_special_tokens=False, return_offsets_mapping=True)
    for end in range(1, len(text.rstrip()) + 1):
        one = _one({"prompt": "x", "completion": text, "spans": [{**SPAN, "start": 0, "end": end}]})
        place = one.step_rewards.index(1.0)
        # Several tokens of one character have the same offsets: the last completes it.
        ends = [offsets[1] for offsets in encoded["offset_mapping"]]
        first = next(i for i, reached in enumerate(ends) if reached >= end)
        if ends[first] == end or not text[end - 1].isspace():
            same = [i for i, o in enumerate(encoded["offset_mapping"]) if o[1] == ends[first]]
            assert place == same[-1], (end, text[:end])


def test_spans_of_a_message_and_of_sampled_tokens() -> None:
    plain = _one({"prompt": "x", "completion": TEXT, "spans": ASPECTS, "reward": 0.5})
    assert plain.label == -0.5
    places = [i for i, value in enumerate(plain.step_rewards) if value]
    assert TOKENIZER.decode(plain.completion[: places[0] + 1]).strip() == TEXT[:19]
    assert TOKENIZER.decode(plain.completion[: places[1] + 1]).strip() == TEXT[:43]
    message = [{"role": "assistant", "content": TEXT}]
    turn = [{"role": "user", "content": "How?"}]
    said = _one({"prompt": turn, "completion": message, "spans": ASPECTS})
    ids = said.completion[: max(i for i, value in enumerate(said.step_rewards) if value) + 1]
    assert TOKENIZER.decode(ids).strip() == TEXT[:43]
    words = [token for word in TEXT.split(" ") for token in TOKENIZER(" " + word).input_ids]
    drawn = _one({**IDS, "completion": TEXT, "completion_token_ids": words, "spans": [SPAN]})
    assert (
        TOKENIZER.decode(drawn.completion[: drawn.step_rewards.index(1.0) + 1]).strip()
        == (TEXT[:19])
    )


def test_an_answer_may_end_inside_a_character() -> None:
    first, *_ = TOKENIZER("é", add_special_tokens=False).input_ids
    ids = [*TOKENIZER(TEXT, add_special_tokens=False).input_ids, first]
    text = TOKENIZER.decode(ids)
    assert text.endswith("\ufffd")
    one = _one({**IDS, "completion": text, "completion_token_ids": ids, "spans": ASPECTS})
    assert one.step_rewards[-4:].count(-2.0) == 1


def test_an_aspect_is_the_only_reward() -> None:
    record = {"prompt": "x", "completion": TEXT, "spans": [*ASPECTS, SPAN]}
    record |= {"reward": 9.0, "rewards": [[1, 5.0]]}
    one = _one(record, "staff")
    assert (one.label, sum(one.step_rewards)) == (-2.0, -2.0)
    assert _one(record).label == 9.0 + 5.0 + 1.0 - 2.0 + 1.0


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "text": ({"rewards": "1"}, "'rewards' is text; expected"),
    "numbers": ({"rewards": [1, 2]}, "not a list of"),
    "three": ({"rewards": [[1, 2, 3]]}, "not a list of"),
    "nan": ({"rewards": [[1, float("nan")]]}, "finite"),
    "true": ({"rewards": [[1, True]]}, "finite"),
    "half": ({"rewards": [[1.5, 1]]}, "position 1.5; expected a whole number"),
    "zero": ({"rewards": [[0, 1]]}, "position 0; expected 1 to 4"),
    "beyond": ({"rewards": [[5, 1]]}, "position 5; expected 1 to 4"),
    "large": ({"rewards": [[1, 3e38], [2, 3e38]]}, "too large together"),
    "no list": ({"spans": {}}, "'spans' is an object"),
    "no object": ({"spans": [5]}, "without 'start'"),
    "no value": ({"spans": [{"start": 0, "end": 2}]}, "without 'start'"),
    "no places": ({"spans": [{**SPAN, "start": 4.0}]}, "not whole numbers"),
    "empty": ({"spans": [{**SPAN, "end": 4}]}, "start < end"),
    "no number": ({"spans": [{**SPAN, "value": "good"}]}, "'value' is not a finite number"),
    "aspect": ({"spans": [{**SPAN, "aspect": 3}]}, "'aspect' is a number"),
    "other text": ({"spans": [SPAN], "completion": TEXT}, "do not spell the text"),
    "no text": ({"spans": [SPAN]}, "no field 'completion'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_used_is_refused(name: str) -> None:
    more, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        _one({**IDS, "reward": 1.0, **more})


def test_a_span_beyond_the_text_is_refused() -> None:
    record = {"prompt": "x", "completion": TEXT, "spans": [{**SPAN, "end": len(TEXT) + 1}]}
    with pytest.raises(ValueError, match=f"text of the completion has {len(TEXT)} characters"):
        _one(record)


def test_an_aspect_must_be_in_the_data(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "x", "completion": TEXT, "spans": ASPECTS}) + "\n")
    [one] = data.load(path, "rollouts", TOKENIZER, aspect="room")
    assert one.label == 1.0
    with pytest.raises(ValueError, match="the aspects are room, staff"):
        data.load(path, "rollouts", TOKENIZER, aspect="price")
    with pytest.raises(ValueError, match="only rollouts have spans"):
        data.load(path, "pairs", TOKENIZER, aspect="room")
    path.write_text(json.dumps({**IDS, "reward": 1}) + "\n")
    with pytest.raises(ValueError, match="no field 'spans'"):
        data.load(path, "rollouts", TOKENIZER, aspect="room")


def test_pairs_are_made_by_the_whole_return() -> None:
    steps = [{**IDS, "rewards": [[1, value]], "reward": 0.5} for value in (0.0, 2.0)]
    steps[1]["completion_token_ids"] = [14, EOS]
    (pair,) = data.preferences(steps, 1, 0)
    assert pair["chosen_token_ids"] == [14, EOS]


def test_a_cut_answer_keeps_its_return() -> None:
    one = Rollout([1], [2, 3, 4], 7.0, step_rewards=(1.0, 2.0, 3.0))
    (cut,) = data.shorten([one], 3)
    assert (cut.completion, cut.step_rewards, remaining(cut)) == ([2, 3], (1.0, 2.0), [7.0, 6.0])
    assert list(itertools.accumulate(one.step_rewards))[-1] == 6.0
