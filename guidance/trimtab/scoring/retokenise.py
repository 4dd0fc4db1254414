"""Growing texts as tokens of another tokenizer, without tokenising them from the start each time.

A *seam* is a space after a non-space and before an ASCII letter or digit. At a seam a text splits
into two parts that can be tokenised separately:

    T(a + b) = T(a) + T(b)    where b begins at a seam of a + b

This holds for every tokenizer whose parts (`_LOCAL`) normalise each character alone, or with its
neighbours but never across such a space, and split a text into words from left to right, where a
new word begins at such a space at the latest and no rule looks beyond the character after it. Its
model then never sees both sides. So the tokens before a seam are settled once the seam exists: only
the window from the last seam in the candidates' common text is tokenised again, and the settled
tokens are cached.

Tokenizers with any other part (a normaliser that puts something before every text, as Llama 2's; a
regular expression that looks back), and those that fail a probe, tokenise the whole text each time:
slower, but equally correct.
"""

import json
import random
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.scoring.pool import NO_IDS, Ids, keep
from trimtab_models import texts

SEAM = re.compile(r"(?<=\S) (?=[A-Za-z0-9])")
KEPT = 1024
"""Maximum number of rows whose settled text is cached; the least recently used are dropped."""

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
"""One of these parts is required, so that words end at spaces; or ByteLevel with its regular
expression."""

PROBES = 200


class Retokeniser:
    """Token ids of texts that share beginnings from call to call.

    Args:
        tokenizer: of transformers.
        rendered: whether the texts are conversations in the tokenizer's chat template, which
            already contain the special tokens.
    """

    def __init__(self, tokenizer: Any, *, rendered: bool = False) -> None:
        self.tokenizer = tokenizer
        start = [] if rendered else texts.start(tokenizer)
        self.start: Ids = np.array(start, dtype=np.int64)
        """Token ids that the tokenizer puts before a text."""
        self.windowed = _is_local(tokenizer) and _passes_probe(tokenizer)
        self._settled: OrderedDict[int, tuple[str, Ids]] = OrderedDict()

    def reference(self, text: str) -> Ids:
        """The token ids of the whole text; `sequences` must equal them."""
        ids = np.concatenate((self.start, self._ids(text)))
        # A network needs at least one token, even for an empty text.
        return ids if len(ids) else np.array([self.tokenizer.eos_token_id or 0])

    def sequences(self, key: int, texts: Sequence[str]) -> list[Ids]:
        """The token ids of each text, [length] int64; `key` identifies their row."""
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
    """The common prefix of all texts, which are known to agree up to `start`."""
    low, high = min(texts), max(texts)
    ends = enumerate(zip(low[start:], high[start:], strict=False), start)
    return next((low[:at] for at, (a, b) in ends if a != b), low)


def _last_seam(text: str, start: int) -> int:
    """Position of the last seam after `start`; `start` if there is none."""
    at = len(text) - 1
    while (at := text.rfind(" ", start + 1, at)) > 0:
        if SEAM.match(text, at):
            return at
    return start


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
    # An added token that strips or contains spaces may reach across a seam.
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
    """Whether random texts split at their seams: a test of tokenizers that pass `_is_local`."""
    rng = random.Random(0)
    pieces = ["a", "Zq", "it's", "7", "42", " ", "  ", "\n", "\t", ".", "?!", "(", "é", "e\u0301"]
    pieces += ["中文", "한", "😀", "👩\u200d💻", "ﬁ", "\u00a0", "_", "-", "\u0e33", "▁", "Ġ"]
    for _ in range(PROBES):
        text = "".join(rng.choice(pieces) + rng.choice(["", " "]) for _ in range(12))
        at = _last_seam(text, 0)

        def ids(part: str) -> list[int]:
            return list(tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"])

        if at and ids(text) != ids(text[:at]) + ids(text[at:]):
            return False
    return True
