"""The committed demo: its size, its tokenizer, its base's text, its scorers' evidence."""

import json
import random
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from trimtab_models import checkpoint, data, demo
from trimtab_models.data import Record
from trimtab_models.demo import corpus, oracles, rollouts, world
from trimtab_models.scoring import prefix_scores

MOST_BYTES = 8 * 2**20


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def _tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo.base())


@cache
def _samples() -> list[Record]:
    """Two completions of each of 64 prompts that no training saw."""
    model = AutoModelForCausalLM.from_pretrained(demo.base(), dtype=torch.float32)
    prompts = [demo.chat(prompt) for prompt in demo.prompts("test", 64, 0)] * 2
    return rollouts.sample(model, _tokenizer(), prompts, seed=0, batch_size=128)


def test_the_weights_stay_small() -> None:
    folder = demo.base().parent
    present = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert {"base", *demo.scorers()} == present
    files = [f for name in ("base", *demo.scorers()) for f in (folder / name).rglob("*")]
    assert 4 * 2**20 < sum(file.stat().st_size for file in files) <= MOST_BYTES


@pytest.mark.parametrize(
    "text",
    [
        "The coffee was remarkably good. Yeah, I would recommend it, folks.",
        '{"name": "cafe", "ratings": [1, 2.5, null], "ok": true}',
        "naïve café – 東京 🙂\n\ttab",
        "".join(map(chr, range(32, 127))),
    ],
)
def test_any_text_round_trips(text: str) -> None:
    ids = _tokenizer()(text, add_special_tokens=False).input_ids
    assert _tokenizer().decode(ids, skip_special_tokens=True) == text


def test_the_words_of_the_world_are_single_tokens() -> None:
    draw = random.Random(0)
    text = " ".join(world.review(kind, draw) for kind in world.KINDS * 5)
    words = text.split()
    assert len(_tokenizer()(text).input_ids) <= len(words) + sum(map(text.count, ".,"))


def test_the_chat_template_takes_what_clients_send() -> None:
    def render(messages: list[dict[str, Any]], **options: Any) -> str:
        return str(_tokenizer().apply_chat_template(messages, tokenize=False, **options))

    user = {"role": "user", "content": "How was the cafe?"}
    assert render([user], add_generation_prompt=True) == demo.chat(user["content"])
    parts = {"role": "user", "content": [{"type": "text", "text": user["content"]}]}
    assert render([parts], add_generation_prompt=True) == demo.chat(user["content"])
    system = {"role": "system", "content": "Be brief."}
    assert render([system, user]).startswith("<|system|>Be brief.<|end|><|user|>How")
    function = {"name": "get_review", "parameters": {"properties": {"kind": {}, "city": {}}}}
    tools = [{"type": "function", "function": function}]
    assert "Tools: get_review(kind, city)<|end|>" in render([user], tools=tools)
    called = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "get_review", "arguments": {"kind": "cafe"}}}],
    }
    answer = {"role": "tool", "content": "Fair.", "tool_call_id": "1"}
    text = render([user, called, answer], add_generation_prompt=True)
    assert '<tool_call>{"name": "get_review", "arguments": {"kind": "cafe"}}</tool_call>' in text
    assert text.endswith("<|tool|>Fair.<|end|><|assistant|>")


def test_the_base_writes_readable_reviews() -> None:
    draw = random.Random(0)
    reviews = " ".join(world.review(draw.choice(world.KINDS), draw) for _ in range(3000))
    known = set(oracles.words_of(reviews))
    eos = _tokenizer().eos_token_id
    good = [
        record["completion_token_ids"][-1] == eos
        and set(oracles.words_of(record["completion"])) <= known
        and world.kind_in(record["prompt"].split("<|end|>")[0]) is not None
        for record in _samples()
    ]
    assert sum(good) / len(good) >= 0.9


def test_the_base_is_undecided() -> None:
    for name, reward in demo.rewards.items():
        values = torch.tensor([r["reward"] for r in rollouts.label(_samples(), reward)])
        assert abs(values.mean()) < 0.25, name
        assert values.std() > 0.3, name


def test_the_base_ends_json_and_tool_calls() -> None:
    """Eight of each, of which at least six parse: a model this small errs now and then."""
    model = AutoModelForCausalLM.from_pretrained(demo.base(), dtype=torch.float32)
    messages, tools = corpus.tool_chat(random.Random(5))
    call = _tokenizer().apply_chat_template(
        messages[:1], tools=tools, tokenize=False, add_generation_prompt=True
    )
    prompts = [demo.chat(corpus.FORMS_OF_JSON[0].format("cafe")), str(call)]
    answers = rollouts.sample(model, _tokenizer(), prompts * 8, seed=0)
    for kind, keys in (("json", set()), ("tool", {"name", "arguments"})):
        good = 0
        for answer in answers[0 if kind == "json" else 1 :: 2]:
            text = answer["completion"].removeprefix("<tool_call>").removesuffix("</tool_call>")
            with suppress(json.JSONDecodeError):
                good += keys <= json.loads(text).keys()
        assert good >= 6, kind


@pytest.mark.parametrize("name", demo.scorers())
def test_a_scorer_is_a_plain_token_classifier(name: str) -> None:
    path = demo.scorers()[name]
    model = AutoModelForTokenClassification.from_pretrained(path)
    assert model.config.num_labels == 1
    assert (path / "tokenizer.json").read_bytes() == (demo.base() / "tokenizer.json").read_bytes()
    assert "README.md" in {file.name for file in path.iterdir()}
    _, info = checkpoint.load(path)
    assert info.family == "head"
    assert info.deviation > 0


def _agreement(scores: list[float], labels: list[float]) -> float:
    """Share of the unequal pairs that the scores put in the labels' order."""
    pairs = [
        (s - t) * (a - b) > 0
        for i, (s, a) in enumerate(zip(scores, labels, strict=True))
        for t, b in zip(scores[:i], labels[:i], strict=True)
        if a != b
    ]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize("name", demo.scorers())
def test_a_scorer_reads_evidence_in_prefixes(name: str) -> None:
    """Early scores agree with the final rewards more often than not, late ones nearly always."""
    labelled = rollouts.label(_samples(), demo.rewards[name])
    model, info = checkpoint.load(demo.scorers()[name])
    items = data.rollouts(labelled, _tokenizer())
    scores = prefix_scores(model, info, items, _tokenizer().pad_token_id)
    labels = [item.label for item in items]
    assert _agreement([float(s[-1]) for s in scores], labels) > 0.9
    assert _agreement([float(s[len(s) // 2]) for s in scores], labels) > 0.65
    # The same check must fail on an order that means nothing.
    shuffled = random.Random(0).sample(labels, len(labels))
    assert 0.4 < _agreement([float(s[-1]) for s in scores], shuffled) < 0.6


def test_the_build_is_where_the_weights_are() -> None:
    from trimtab_models.demo import build

    assert set(build.OBJECTIVES) == set(build.CARDS) == set(demo.scorers())
    assert demo.base().parent == Path(build.__file__).parent / "weights"
