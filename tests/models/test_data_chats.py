"""Chats as TRL takes them, with every template it knows; what a template would lose is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import trl
from transformers import AutoTokenizer
from trl.data_utils import apply_chat_template

from trimtab_models import data, demo
from trimtab_models.data import Record, chats
from trimtab_models.data.faults import Fault

TEMPLATES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
}
TOKENIZER = AutoTokenizer.from_pretrained(demo.base())
TOOLS = [
    {
        "type": "function",
        "function": {"name": "price", "description": "of a thing", "parameters": {}},
    }
]
CALLS = [{"id": "abcdefghi", "type": "function", "function": {"name": "price", "arguments": {}}}]
TOOL = {"role": "tool", "name": "price", "tool_call_id": "abcdefghi", "content": "3"}


def _with(template: str) -> Any:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = template
    tokenizer.bos_token = tokenizer.eos_token
    return tokenizer


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _answer(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def _parts(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text, "image": None} for text in texts]


ASKED = [_user("How?")]
FINE = [_answer("Fine.")]
SYSTEM = {"role": "system", "content": "Be kind."}
CASES: dict[str, tuple[Record, int]] = {
    "an answer": ({"prompt": ASKED, "completion": FINE}, 50),
    "turns": ({"prompt": [*ASKED, *FINE, _user("And?")], "completion": FINE}, 50),
    "a system prompt": ({"prompt": [SYSTEM, *ASKED], "completion": FINE}, 50),
    "text parts": (
        {"prompt": [_user(_parts("How", "?"))], "completion": [_answer(_parts("Fine."))]},
        50,
    ),
    "thoughts": ({"prompt": ASKED, "completion": [_answer("<think>\nHm.\n</think>\n\nSo.")]}, 50),
    "thoughts apart": (
        {"prompt": ASKED, "completion": [_answer("So.", reasoning_content="Hm.")]},
        20,
    ),
    "a call": (
        {"prompt": ASKED, "completion": [_answer(None, tool_calls=CALLS)], "tools": TOOLS},
        25,
    ),
    "calls before": (
        {"prompt": [*ASKED, _answer(None, tool_calls=CALLS), TOOL], "completion": FINE},
        25,
    ),
    "calls with empty texts": (
        {"prompt": [*ASKED, _answer("", tool_calls=CALLS), TOOL], "completion": FINE},
        30,
    ),
    "tools as JSON": ({"prompt": ASKED, "completion": FINE, "tools": json.dumps(TOOLS)}, 20),
    "an answer begun": ({"prompt": [*ASKED, _answer("It is")]}, 60),
}
"""Records, and how many of TRL's templates can write them at least."""
REFUSALS = (
    "the chat template refuses the messages",
    "the chat template renders the prompt differently when 'completion' follows",
    "the chat template leaves out a message of",
    "the chat template leaves out a part of 'completion'",
    "the chat template leaves out the tool calls",
    "the chat template leaves out the 'tools'",
    "the chat template writes 'None' for a null content",
)


def _as_trl_has_it(tokenizer: Any, record: Record) -> tuple[str, str]:
    """TRL hands text parts to the template, of which not all can read them; so as one text."""
    one = {
        name: [
            {**m, "content": "".join(part["text"] for part in m["content"])}
            if isinstance(m["content"], list)
            else m
            for m in record[name]
        ]
        for name in ("prompt", "completion")
        if name in record
    }
    tools = record.get("tools")
    tools = json.loads(tools) if isinstance(tools, str) else tools
    said = apply_chat_template(one, tokenizer, tools=tools)
    return said["prompt"], said.get("completion", "")


@pytest.mark.parametrize("name", CASES)
def test_chats_are_as_trl_has_them_or_refused(name: str) -> None:
    record, fewest = CASES[name]
    taken, refused = 0, []
    for title, template in TEMPLATES.items():
        tokenizer = _with(template)
        try:
            prompt = chats.opening(tokenizer, record)
            said = chats.answer(tokenizer, record, "completion") if "completion" in record else ""
        except Fault as fault:
            refused.append(str(fault))
            continue
        assert (prompt, said) == _as_trl_has_it(tokenizer, copy.deepcopy(record)), title
        taken += 1
    assert taken >= fewest
    assert all(fault.startswith(REFUSALS) for fault in refused), refused


PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FORGETFUL = PLAIN.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
SILENT = PLAIN.replace("in messages", "in messages if m.role != 'system'")


@pytest.mark.parametrize(
    ("template", "record", "message"),
    [
        (PLAIN, {"prompt": [_user(None)]}, "without the texts 'role' and 'content'"),
        (PLAIN, {"prompt": [_user(["How?"])]}, "a part that is not text"),
        (PLAIN, {"prompt": [_user([{"type": "image", "url": "x"}])]}, "a part that is not text"),
        (PLAIN, {"prompt": [_user("a"), _answer(None, tool_calls=CALLS), TOOL]}, "writes 'None'"),
        (PLAIN, {"prompt": [_user("a"), _answer("b", tool_calls=CALLS)]}, "out the tool calls"),
        (PLAIN, {"prompt": ASKED, "tools": TOOLS}, "leaves out the 'tools'"),
        (PLAIN, {"prompt": ASKED, "tools": "price"}, "'tools' is text, but not JSON"),
        (PLAIN, {"prompt": ASKED, "tools": {"a": 1}}, "'tools' is an object"),
        (PLAIN, {"prompt": ASKED, "chat_template_kwargs": 3}, "'chat_template_kwargs' must be an"),
        (PLAIN, {"prompt": ASKED, "chat_template_kwargs": {"tokenize": True}}, "without"),
        (SILENT, {"prompt": [SYSTEM, *ASKED]}, "leaves out a message of 'system'"),
        (
            FORGETFUL,
            {"prompt": ASKED, "completion": [_answer("<think>Hm.</think>So.")]},
            "leaves out a part of 'completion'",
        ),
        (
            PLAIN,
            {"prompt": ASKED, "completion": [_answer("So.", reasoning="Hm.")]},
            "leaves out a part of 'completion'",
        ),
        (PLAIN, {"prompt": ASKED, "completion": [_user("Fine.")]}, "has the role 'user'"),
        (PLAIN, {"prompt": ASKED, "completion": [_answer(None)]}, "without the texts"),
    ],
)
def test_nothing_is_left_out_or_made_text_in_silence(
    tmp_path: Path, template: str, record: Record, message: str
) -> None:
    path = tmp_path / "chats.jsonl"
    good = {"prompt": ASKED, "completion": FINE, "reward": 1}
    data.write(path, [good, {**good, **record}])
    with pytest.raises(data.BrokenRows) as caught:
        data.load(path, "rollouts", _with(template))
    said = str(caught.value)
    assert said.startswith(f"1 of 2 rows cannot be used: {path}, line 2: ")
    assert message in said


def test_a_template_has_the_arguments_of_the_row() -> None:
    record = {"prompt": ASKED, "completion": "Fine.", "reward": 0}
    tokenizer = _with(PLAIN + "{% if hurried %}<|user|>{% endif %}")
    plain, with_user = data.rollouts(
        [record, {**record, "chat_template_kwargs": {"hurried": True}}], tokenizer
    )
    assert with_user.prompt == [*plain.prompt, tokenizer.convert_tokens_to_ids("<|user|>")]


def test_a_text_goes_on_where_the_prompt_ends() -> None:
    """A prompt may end in the middle of the answer; messages are turns of their own."""
    begun = {"prompt": [*ASKED, _answer("It is")], "reward": 0}
    tokenizer = _with(PLAIN)
    text, turn = data.rollouts(
        [{**begun, "completion": " good."}, {**begun, "completion": [_answer("Well.")]}], tokenizer
    )
    assert tokenizer.decode(text.prompt) == "<|user|>How?<|end|><|assistant|>It is"
    assert tokenizer.decode(text.completion) == " good.<|end|>"
    assert tokenizer.decode(turn.prompt).endswith("It is<|end|><|assistant|>")


def test_nulls_that_datasets_fills_in_are_no_arguments(tmp_path: Path) -> None:
    calls = [
        {"type": "function", "function": {"name": "price", "arguments": arguments}}
        for arguments in ({"of": "tea"}, {"size": "large"})
    ]
    rows = [
        {"prompt": ASKED, "completion": [_answer(None, tool_calls=[call])], "reward": 1.0}
        for call in calls
    ]
    rows.append({"prompt": ASKED, "completion": FINE, "reward": 0.0})
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    data.write(tmp_path / "rows.jsonl", rows)
    template = PLAIN.replace("{{ m.content }}", "{{ m.content or '' }}{{ m.tool_calls | tojson }}")
    template = template.replace("{{ m.tool", "{% if m.tool_calls %}{{ m.tool").replace(
        "tojson }}", "tojson }}{% endif %}"
    )
    tokenizer = _with(template)
    lines, filled = (
        data.load(tmp_path / f"rows.{kind}", "rollouts", tokenizer) for kind in ("jsonl", "parquet")
    )
    assert '"arguments": {"of": "tea"}' in tokenizer.decode(filled[0].completion)
    assert [sorted(tokenizer.decode(row.completion)) for row in filled] == [
        sorted(tokenizer.decode(row.completion)) for row in lines
    ]
