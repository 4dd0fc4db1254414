"""Texts that grow, as tokens of another tokenizer, without reading them from the start each time.

A *seam* is a space between a character that is none and an ASCII letter or digit. At a seam a text
falls into two that are tokenised apart:

    T(a + b) = T(a) + T(b)    where b begins at a seam of a + b

for every tokenizer whose parts (`_LOCAL`) normalise character by character, or with their
neighbours but never across such a space, and cut a text into words from left to right, each
beginning at the latest at such a space and never looking beyond the character after it: for its
model then never sees both sides. What stands before a seam is therefore settled as soon as the
seam is there, whatever comes after. So a window from the last seam but of what is common to all
candidates is read anew, and the rest is remembered.

Tokenizers with any other part (a normaliser that puts something before every text, as Llama 2's; a
regular expression that looks back), and those that fail a probe, read the whole text each time:
slower, and just as right.
"""

import json
import random
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.scoring.pool import NO_IDS, Ids, keep

SEAM = re.compile(r"(?<=\S) (?=[A-Za-z0-9])")
KEPT = 1024
"""Rows whose settled text is kept, the latest used."""

_LOCAL = {
    "BertNormalizer",
    "BertPreTokenizer",
    "ByteLevel",
    "Digits",
    "Lowercase",
    "Metaspace",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Precompiled",
    "Punctuation",
    "Replace",
    "Split",
    "Strip",
    "StripAccents",
    "Whitespace",
    "WhitespaceSplit",
}
_CUTS = {
    "BertPreTokenizer",
    "Metaspace",
    "Split",
    "Whitespace",
    "WhitespaceSplit",
}
"""Parts one of which must be there, so that a space is where a word ends; or ByteLevel with its
regular expression."""

PROBES = 200


class Retokeniser:
    """Token ids of texts that share beginnings from call to call.

    Args:
        tokenizer: of transformers.
        rendered: whether the texts are conversations in the tokenizer's chat template, which have
            the special tokens in them already.
    """

    def __init__(self, tokenizer: Any, *, rendered: bool = False) -> None:
        self.tokenizer = tokenizer
        start = [] if rendered else _start(tokenizer)
        self.start: Ids = np.array(start, dtype=np.int64)
        """What the tokenizer puts before a text."""
        self.windowed = _is_local(tokenizer) and _passes_probe(tokenizer)
        self._settled: OrderedDict[int, tuple[str, Ids]] = OrderedDict()

    def reference(self, text: str) -> Ids:
        """The whole text, from its start: what `sequences` must equal."""
        ids = np.concatenate((self.start, self._ids(text)))
        # A network needs something to read, also where there is no text yet.
        return ids if len(ids) else np.array([self.tokenizer.eos_token_id or 0])

    def sequences(self, key: int, texts: Sequence[str]) -> list[Ids]:
        """The token ids of each text, [length] int64; `key` names the row that they belong to."""
        if not self.windowed:
            return [self.reference(text) for text in texts]
        before, settled = self._settled.get(key, ("", NO_IDS))
        if not all(text.startswith(before) for text in texts):
            before, settled = "", NO_IDS
        common = _common(texts, len(before))
        seam = _last_seam(common, len(before))
        if seam > len(before):
            settled = np.concatenate((settled, self._ids(common[len(before) : seam])))
            before = common[:seam]
        keep(self._settled, key, (before, settled), KEPT)
        if not before:
            return [self.reference(text) for text in texts]
        at = len(before)
        return [np.concatenate((self.start, settled, self._ids(text[at:]))) for text in texts]

    def forget(self, key: int) -> None:
        """Drop a row's settled text."""
        self._settled.pop(key, None)

    def _ids(self, text: str) -> Ids:
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return np.array(ids, dtype=np.int64)


def _common(texts: Sequence[str], start: int) -> str:
    """What all texts begin with, who are known to agree up to `start`."""
    low, high = min(texts), max(texts)
    ends = enumerate(zip(low[start:], high[start:], strict=False), start)
    return next((low[:at] for at, (a, b) in ends if a != b), low)


def _last_seam(text: str, start: int) -> int:
    """Where the last seam after `start` is; `start` if there is none."""
    at = len(text) - 1
    while (at := text.rfind(" ", start + 1, at)) > 0:
        if SEAM.match(text, at):
            return at
    return start


def _start(tokenizer: Any) -> list[int]:
    """The special tokens before a text; those after it belong to whole texts, not to prefixes."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare), [])


def _is_local(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    description = json.loads(backend.to_str())
    parts = [*_parts(description["normalizer"]), *_parts(description["pre_tokenizer"])]
    kinds = {part["type"] for part in parts}
    cuts = bool(kinds & _CUTS) or any(part.get("use_regex") for part in parts)
    whole = any(part.get("split") is False for part in parts)
    looks_back = any("(?<" in json.dumps(part.get("pattern", "")) for part in parts)
    # An added token that swallows spaces, or has some inside, may reach across a seam.
    greedy = any(
        token["rstrip"]
        or (token["lstrip"] and token["content"][0].isalnum())
        or " " in token["content"]
        for token in description["added_tokens"]
    )
    return kinds <= _LOCAL and cuts and not (whole or looks_back or greedy)


def _parts(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    inner = part.get("normalizers") or part.get("pretokenizers") or []
    return [leaf for one in inner for leaf in _parts(one)]


def _passes_probe(tokenizer: Any) -> bool:
    """Whether random texts do fall apart at their seams, so that no tokenizer can surprise us."""
    draw = random.Random(0)
    pieces = ["a", "Zq", "it's", "7", "42", " ", "  ", "\n", "\t", ".", "?!", "(", "é", "e\u0301"]
    pieces += ["中文", "한", "😀", "👩\u200d💻", "ﬁ", "\u00a0", "_", "-", "\u0e33", "▁", "Ġ"]
    for _ in range(PROBES):
        text = "".join(draw.choice(pieces) + draw.choice(["", " "]) for _ in range(12))
        at = _last_seam(text, 0)

        def ids(part: str) -> list[int]:
            return list(tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"])

        if at and ids(text) != ids(text[:at]) + ids(text[at:]):
            return False
    return True
