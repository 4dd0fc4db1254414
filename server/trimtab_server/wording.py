"""vLLM's error messages without the client's input.

vLLM puts input into its messages: a model's name, a value, a grammar. Only numbers, punctuation and
the words of vLLM's own messages are passed on; everything else becomes "…". New words of a later
vLLM are dropped, too.
"""

import re
from pathlib import Path

LONGEST = 1000
"""Maximum characters of a message."""

WORDS = set(Path(__file__).with_name("words.txt").read_text().split())
"""The words of vLLM's messages about requests, and of pydantic's."""
_TOKEN = re.compile(
    r"(?P<number>(?<![^\W\d_])\d{1,20}(?:\.\d{1,20})?(?:e[-+]?\d{1,3})?(?!\w))"
    r"|(?P<word>\w+(?:['’]\w+)*)|(?P<mark>[ -~])|(?P<rest>.)",
    re.DOTALL,
)
_GAPS = re.compile(r"…[\s…/_.:@#-]*…")
_UNWRAPPED = re.compile(r"[_’']|(?<=[a-z])(?=[A-Z])")


def plain(message: str) -> str:
    """The message with … in place of unknown words; at most LONGEST characters."""
    kept = (_kept(match) for match in _TOKEN.finditer(message[: 2 * LONGEST]))
    text = " ".join(_GAPS.sub("…", "".join(kept)).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def learn(text: str) -> None:
    """Add the words of a trusted text, such as the chat template, to the known ones."""
    WORDS.update(match.group().lower() for match in _TOKEN.finditer(text) if match["word"])


def field(name: str) -> str | None:
    """The name of a request's field if all its words are known, else None."""
    return name if plain(name) == name else None


def _kept(match: re.Match[str]) -> str:
    text = match.group()
    if match.lastgroup == "word":
        known = text.lower() in WORDS or all(
            part.lower() in WORDS for part in _UNWRAPPED.split(text) if part
        )
        return text if known else "…"
    return " " if text.isspace() else text if match.lastgroup != "rest" else "…"
