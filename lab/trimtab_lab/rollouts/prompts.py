"""Read prompts from a file, as token ids.

.txt     one prompt per line, blank lines skipped: a user message, rendered by the chat template
         of the model's tokenizer; unchanged if there is no template, or with `raw`
.jsonl   "prompt": messages, rendered by the template, or text, used unchanged (as in TRL);
         "prompt_token_ids", if present, are used unchanged; other fields are kept, except those
         of an answer (`data.fields.ANSWER`)
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError
from trimtab_models.data import chats, encoding
from trimtab_models.data.faults import (
    BrokenRows,
    DataRow,
    Fault,
    Record,
    convert,
    json_type,
    noting,
)
from trimtab_models.data.faults import field as field_of
from trimtab_models.data.fields import ANSWER, of_prompt
from trimtab_models.data.lines import json_lines, lines

log = logging.getLogger(__name__)
PROMPT_FIELDS = ("prompt", "prompt_token_ids")


@dataclass(frozen=True)
class RolloutPrompt:
    """A prompt: text or messages, and the token ids that the model reads."""

    content: str | list[dict[str, Any]]
    token_ids: list[int]
    fields: dict[str, Any] = field(default_factory=dict)
    """The other fields of its line."""
    place: str = "a prompt"
    """File and line, "file, line 3"."""


def read(path: str | Path, tokenizer: Any, *, raw: bool = False) -> list[RolloutPrompt]:
    """The prompts of a file, in the file's order.

    Raises:
        TrimtabError: a line is not a prompt (the message names it), or the file has no prompt.
        OSError: the file cannot be read.
    """
    text = Path(path).suffix not in (".jsonl", ".json")
    chat = not raw and tokenizer.chat_template is not None
    rows = _texts(path, chat) if text else json_lines(path)
    vocabulary = encoding.vocabulary(tokenizer)
    places: list[str] = []
    others: Counter[str] = Counter()

    def prompt(record: Record) -> RolloutPrompt:
        others.update(name for name in ANSWER if name in record and name != "label")
        return _prompt(record, tokenizer, vocabulary)

    try:
        prompts = convert(noting(rows, places), prompt, "prompts")
    except BrokenRows as error:
        raise TrimtabError(str(error)) from None
    if not prompts:
        raise TrimtabError(f"{path} has no prompt.")
    for name, count in others.items():
        log.warning("%s: %r of %d prompts belongs to other answers; ignored.", path, name, count)
    return [replace(one, place=place) for one, place in zip(prompts, places, strict=True)]


def check_lengths(sizes: Sequence[tuple[str, int]], max_tokens: int, max_length: int) -> None:
    """Refuse prompts for which prompt + `max_tokens` exceeds the model's `max_length`.

    Args:
        sizes: (place, tokens) of each prompt.
        max_tokens: maximum tokens of an answer.
        max_length: maximum tokens of prompt and answer together.

    Raises:
        TrimtabError: some are too long; the message names the first and counts them.
    """
    long = [(place, tokens) for place, tokens in sizes if tokens + max_tokens > max_length]
    if long:
        place, tokens = long[0]
        raise TrimtabError(
            f"{len(long)} of {len(sizes)} prompts are too long: {place}, has {tokens} tokens, "
            f"which with {max_tokens} to sample exceeds the model's limit of {max_length}; "
            "shorten or remove such prompts, or sample fewer tokens."
        )


def _texts(path: str | Path, chat: bool) -> Iterator[DataRow]:
    for place, line in lines(path):
        if line is None:
            yield DataRow(place, {}, "not UTF-8")
        else:
            yield DataRow(place, {"prompt": _user_message(line.strip()) if chat else line})


def _user_message(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def _prompt(row: Record, tokenizer: Any, vocabulary: int) -> RolloutPrompt:
    content = field_of(row, "prompt")
    if not isinstance(content, str | list):
        raise Fault(f"'prompt' is {json_type(content)}; expected text or a list of messages")
    if not content:
        raise Fault("'prompt' is empty")
    if isinstance(content, list):
        chats.messages(row, "prompt")  # checked even if the row has token ids
    ids = encoding.stored_ids(row, "prompt", vocabulary)
    if ids is None:
        ids = _ids(row, content, tokenizer)
    if not ids:
        raise Fault("the prompt has no tokens")
    fields = {name: value for name, value in of_prompt(row).items() if name not in PROMPT_FIELDS}
    if "label" in row:
        fields["label"] = row["label"]
    return RolloutPrompt(content, ids, fields)


def _ids(row: Record, content: str | list[Any], tokenizer: Any) -> list[int]:
    if isinstance(content, list):
        text, special = chats.opening(tokenizer, row), False
    else:
        has_bos = tokenizer.bos_token is not None and content.startswith(tokenizer.bos_token)
        text, special = content, not has_bos
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Fault("'prompt' holds half a surrogate pair, which is not a character") from None
    return list(tokenizer(text, add_special_tokens=special).input_ids)
