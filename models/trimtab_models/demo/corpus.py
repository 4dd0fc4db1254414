"""The training corpus of the demo's base model: chats about reviews, some JSON, some tool calls.

The JSON and the tool calls make structured output and tools work as users expect of a served model;
they are a twelfth of the corpus.
"""

import json
import random
from collections.abc import Iterator
from typing import Any

from trimtab_models.demo import world
from trimtab_models.demo.words import ASPECTS

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]]

SYSTEMS = (
    "You are a helpful assistant.",
    "You review products and places.",
    "Answer in English.",
    "You are a critic.",
)
TEXT_KEYS = ("review", "summary", "text", "comment", "answer", "description", "title", "reason")
WORD_KEYS = ("name", "kind", "category", "item", "product", "place", "city", "query", "topic")
NUMBER_KEYS = ("rating", "stars", "score", "price", "count", "age", "year")
TRUTH_KEYS = ("recommended", "open", "available", "visited")
ASPECT_KEYS = ("pros", "cons", "aspects", "tags")
FORMS_OF_JSON = (
    "Describe the {} as JSON.",
    "Give me JSON about the {}.",
    "Review the {} in JSON.",
    "Answer in JSON: how was the {}?",
)
VERBS = ("get", "find", "search", "lookup", "book", "rate")
NOUNS = ("review", "place", "product", "price", "weather", "reviews", "rating")
PARAMETERS = ("city", "kind", "query", "name", "location", "topic", "item")


def raw_prompt(prompt: str) -> str:
    """The same request without a chat, for a plain completion."""
    return f"Review of the {world.kind_in(prompt)}:"


def _value(key: str, kind: str, draw: random.Random) -> Any:
    if key in TEXT_KEYS:
        return world.review(kind, draw, most=2)
    if key in NUMBER_KEYS:
        return draw.randint(1, 10)
    if key in TRUTH_KEYS:
        return draw.random() < 0.5
    if key in ASPECT_KEYS:
        return draw.sample(ASPECTS[kind], draw.randint(1, 3))
    return kind


def json_chat(draw: random.Random) -> Messages:
    """A request for JSON, and a flat object as the answer."""
    kind = draw.choice(world.KINDS)
    keys = draw.sample((*TEXT_KEYS, *WORD_KEYS, *NUMBER_KEYS, *TRUTH_KEYS, *ASPECT_KEYS), 3)
    answer = {key: _value(key, kind, draw) for key in keys[: draw.randint(1, 3)]}
    chat = [
        {"role": "user", "content": draw.choice(FORMS_OF_JSON).format(kind)},
        {"role": "assistant", "content": json.dumps(answer)},
    ]
    if draw.random() < 0.5:
        return chat
    chat[0]["content"] = draw.choice(world.FORMS_OF_ASKING).format(kind)
    return [{"role": "system", "content": "Answer in JSON."}, *chat]


def tool_chat(draw: random.Random) -> tuple[Messages, Tools]:
    """A request, one tool that answers it, and the call."""
    kind = draw.choice(world.KINDS)
    name = f"{draw.choice(VERBS)}_{draw.choice(NOUNS)}"
    keys = draw.sample(PARAMETERS, draw.randint(1, 2))
    tool = {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {k: {"type": "string"} for k in keys}},
        },
    }
    call = {"name": name, "arguments": dict.fromkeys(keys, kind)}
    messages = [
        {"role": "user", "content": draw.choice(world.FORMS_OF_ASKING).format(kind)},
        {"role": "assistant", "content": f"<tool_call>{json.dumps(call)}</tool_call>"},
    ]
    return messages, [tool]


def review_chat(draw: random.Random, prompts: list[str]) -> Messages:
    """A request of the world, sometimes after a system message, and its review."""
    prompt = draw.choice(prompts)
    chat = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": world.review(world.kind_in(prompt), draw)},
    ]
    system = {"role": "system", "content": draw.choice(SYSTEMS)}
    return [system, *chat] if draw.random() < 0.1 else chat


def documents(tokenizer: Any, n: int, seed: int) -> Iterator[str]:
    """n training texts, rendered by the tokenizer's chat template, each ending in EOS."""
    draw = random.Random(seed)
    prompts = world.prompts("train", len(world.every_prompt()) * 4 // 5)
    for _ in range(n):
        lot = draw.random()
        if lot < 0.08:
            prompt = draw.choice(prompts)
            text = world.review(world.kind_in(prompt), draw)
            yield f"{raw_prompt(prompt)} {text}{tokenizer.eos_token}"
            continue
        tools: Tools | None = None
        if lot < 0.12:
            chat = json_chat(draw)
        elif lot < 0.16:
            chat, tools = tool_chat(draw)
        else:
            chat = review_chat(draw, prompts)
        yield tokenizer.apply_chat_template(chat, tools=tools, tokenize=False)
