"""The texts of single tokens, for traces."""

from typing import Any

WORD = "\u2581"
"""SentencePiece's mark of a leading space, which `decode` drops at the beginning of a text."""


class TokenTexts(dict[int, str]):
    """Token id → its text, remembered; U+FFFD for a part of a character."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def __missing__(self, token: int) -> str:
        text: str = self.tokenizer.decode([token])
        [raw] = self.tokenizer.convert_ids_to_tokens([token])
        if isinstance(raw, str) and raw.startswith(WORD) and not text.startswith(" "):
            text = f" {text}"
        self[token] = text
        return text
