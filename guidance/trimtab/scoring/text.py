"""Rows as text, for scorers that do not read the base's tokens.

    text of a candidate = prompt, rendered once, + answer so far + candidate

A candidate may end inside a character. The partial character would decode to U+FFFD and be scored
as that, so it is left out: such a candidate has the score of the text before the character.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from trimtab.scoring.pool import NO_IDS, Ids, keep
from trimtab_models import texts as decoding

KEPT = 1024
"""Maximum number of rendered prompts in the cache; the least recently used are dropped."""

_WORD = re.compile(r"\w+")
REASON = 200
"""Maximum characters of a template's reason."""

Turns: TypeAlias = Sequence[Mapping[str, Any]]
"""A conversation: each turn has a `role` and a `content`, both text; an assistant's may have
`tool_calls`, in the form of transformers' chat templates. The last is `open` if the answer
continues it."""


@dataclass(frozen=True)
class Prompt:
    """Where a row's prompt ends, and the conversation that it comes from."""

    length: int
    """Tokens of the prompt; what follows is the answer."""
    turns: Turns | None = None
    """The conversation that the base's chat template made the prompt from, if any."""


@dataclass(frozen=True)
class PromptContext:
    """What the engine does not know about a prompt."""

    length: int | None = None  # where the prompt ends, if the engine continues a part of the answer
    turns: Turns | None = None  # the conversation that it was made from, if any


Render: TypeAlias = Callable[[Turns], str]
"""A conversation → the text in which the scorer's own model expects its next answer."""


class Detokenizer(Protocol):
    """The part of the base's tokenizer that is needed here."""

    def decode(self, token_ids: Any, /, *, skip_special_tokens: bool = False) -> Any:
        """The text of some tokens; U+FFFD for bytes that do not form a character."""


@dataclass(frozen=True)
class Texts:
    """One row: its prompt, and its answer with each candidate at its end."""

    prompt: str
    answers: list[str]


def template(tokenizer: Any) -> Render | None:
    """The render function of a tokenizer's own chat template, if it has one."""
    if not tokenizer.chat_template:
        return None

    def render(turns: Turns) -> str:
        continues = bool(turns[-1].get("open"))
        try:
            text: str = tokenizer.apply_chat_template(
                [{name: turn[name] for name in turn if name != "open"} for turn in turns],
                tokenize=False,
                add_generation_prompt=not continues,
                continue_final_message=continues,
            )
        except Exception as error:
            raise ValueError(reason(error, tokenizer.chat_template)) from None
        return text

    return render


def reason(error: Exception, source: Any) -> str:
    """Why a chat template refused: its exception, in one short line.

    Templates raise anything; words that the template does not contain may be from the conversation
    and are removed.
    """
    known = set(_WORD.findall(str(source).lower()))
    line = next(iter(str(error).splitlines()), "")[:REASON].strip().rstrip(".")
    if not known & set(_WORD.findall(line.lower())):
        return type(error).__name__
    return _WORD.sub(lambda word: word[0] if word[0].lower() in known else "…", line)


class Reader:
    """The text of rows.

    Args:
        decoder: the base's tokenizer.
        render: renders a prompt's conversation for the scorer; a prompt without one counts as a
            single turn of the user. If None, the prompt's text is used.
    """

    def __init__(self, decoder: Detokenizer, render: Render | None = None) -> None:
        self.decoder = decoder
        self.render = render
        self._prompts: OrderedDict[int, tuple[Ids, Turns | None, str]] = OrderedDict()

    def read(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        prompts: Sequence[Prompt],
    ) -> list[Texts]:
        """The texts of all rows; see Scorer.score."""
        texts = []
        for i, (key, prefix, group) in enumerate(zip(keys, prefixes, candidates, strict=True)):
            prompt = prompts[i] if prompts else Prompt(0)
            before, answer = prefix[: prompt.length], prefix[prompt.length :]
            so_far = answer.tolist()
            ends = ([*so_far, token] for token in group.tolist())
            answers = decoding.answers(self.decoder, before.tolist(), ends)
            texts.append(Texts(self._prompt(key, before, prompt.turns), answers))
        return texts

    def refusal(self, turns: Turns) -> str | None:
        """Why `render` refuses a conversation; None if it does not."""
        try:
            if self.render is not None:
                self.render(turns)
        except Exception as error:
            return str(error)
        return None

    def forget(self, key: int) -> None:
        """Drop a row's rendered prompt."""
        self._prompts.pop(key, None)

    def _prompt(self, key: int, ids: Ids, turns: Turns | None) -> str:
        known = self._prompts.get(key, (NO_IDS, None, ""))
        if len(ids) == 0 or not np.array_equal(known[0], ids) or known[1] != turns:
            text = decoding.decoded(self.decoder, ids.tolist())
            if self.render is not None:
                text = self.render(turns or [{"role": "user", "content": text}])
            known = (ids, turns, text)
        keep(self._prompts, key, known, KEPT)
        return known[2]
