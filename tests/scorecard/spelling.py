"""A scorer that spells texts whose characters are several tokens each (family=function)."""

import functools

from transformers import AutoTokenizer

from trimtab_models import demo

EMOJI = "👩\u200d👩\u200d👧🙂"
CJK = "日本語の文"
BYTES = "ñœ€ḿ"


@functools.cache
def spelled() -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(demo.base())
    return [tokenizer.encode(text, add_special_tokens=False) for text in (EMOJI, CJK, BYTES)]


def spelling(ids: list[int]) -> float:
    """How many tokens of a text the sequence ends with, from the text's first one on."""
    return float(
        max(
            (n for text in spelled() for n in range(1, len(text) + 1) if ids[-n:] == text[:n]),
            default=0,
        )
    )
