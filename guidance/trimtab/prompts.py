"""Prompts out of a file, as token ids.

.txt     one prompt a line, blank lines skipped: a user's message, rendered by the chat template
         of the model's tokenizer; as it stands if there is no template, or with `raw`
.jsonl   "prompt": messages, rendered by the template, or text, which stands as it is (so TRL
         has it); further fields are kept; "prompt_token_ids" beside it are used unchanged
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.errors import TrimtabError
from trimtab_models.data.fields import of_prompt

OURS = ("prompt", "prompt_token_ids")


@dataclass(frozen=True)
class Prompt:
    """A prompt as text or messages, as the model reads it, and what else its line said."""

    content: str | list[dict[str, Any]]
    token_ids: list[int]
    fields: dict[str, Any] = field(default_factory=dict)


def read(path: str | Path, tokenizer: Any, *, raw: bool = False) -> list[Prompt]:
    """The prompts of a file, in its order.

    Raises:
        TrimtabError: a line is not a prompt, or there is none; the message names the line.
        OSError: the file cannot be read.
    """
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    text = Path(path).suffix not in (".jsonl", ".json")
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if text:
                chat = not raw and tokenizer.chat_template is not None
                content = [{"role": "user", "content": line.strip()}] if chat else line
                prompts.append(Prompt(content, _ids(content, tokenizer)))
            else:
                prompts.append(_record(line, tokenizer))
        except Exception as error:  # a template may raise anything
            raise TrimtabError(f"{path}, line {number}: {error}") from None
    if not prompts:
        raise TrimtabError(f"{path} holds no prompt.")
    return prompts


def _record(line: str, tokenizer: Any) -> Prompt:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg}).") from None
    content = record.get("prompt") if isinstance(record, dict) else None
    messages = isinstance(content, list) and all(
        isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in content
    )
    if not content or not (messages or isinstance(content, str)):
        raise ValueError('expected a JSON object with a "prompt", text or messages.')
    given = record.get("prompt_token_ids")
    ids = _ids(content, tokenizer) if given is None else list(given)
    fields = {name: value for name, value in of_prompt(record).items() if name not in OURS}
    if "label" in record:
        fields["label"] = record["label"]
    return Prompt(content, ids, fields)


def _ids(content: str | list[dict[str, Any]], tokenizer: Any) -> list[int]:
    if isinstance(content, str):
        begun = tokenizer.bos_token is not None and content.startswith(tokenizer.bos_token)
        ids = tokenizer(content, add_special_tokens=not begun).input_ids
    else:
        ids = tokenizer.apply_chat_template(
            content, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    if not ids:
        raise ValueError("the prompt has no tokens.")
    return list(ids)
