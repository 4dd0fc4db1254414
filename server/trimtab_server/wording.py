"""vLLM's error messages without what they hold of a request.

vLLM puts the input into its messages: a model's name, a value, a grammar. What is passed on of a
message is numbers, punctuation and the words that vLLM's own messages are made of; the rest is
left out. So a message of a later vLLM is passed on as far as its words are known.
"""

import re
from pathlib import Path

LONGEST = 1000
"""Most characters of a message."""

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
    """The message with … for what is none of its own words; at most LONGEST characters."""
    kept = (_kept(found) for found in _TOKEN.finditer(message[: 2 * LONGEST]))
    text = " ".join(_GAPS.sub("…", "".join(kept)).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def learn(text: str) -> None:
    """Count the words of a text that is the server's own as known: its chat template's reasons."""
    WORDS.update(match.group().lower() for match in _TOKEN.finditer(text) if match["word"])


def field(name: str) -> str | None:
    """The name of a request's field, if it is one that vLLM speaks of."""
    return name if plain(name) == name else None


def _kept(found: re.Match[str]) -> str:
    text = found.group()
    if found.lastgroup == "word":
        known = text.lower() in WORDS or all(
            part.lower() in WORDS for part in _UNWRAPPED.split(text) if part
        )
        return text if known else "…"
    return " " if text.isspace() else text if found.lastgroup != "rest" else "…"
