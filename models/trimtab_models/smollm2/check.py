"""Checks of a fetched directory: round trips of the tokenizer, the template, the end tokens."""

import random
from pathlib import Path
from typing import Any

from trimtab_models import pretrained
from trimtab_models.files import Unusable, read_json

END = "<|im_end|>"
END_ID = 2
TEXTS = (
    "In 2024, 3  100 apples cost $12.50!",
    "  two  spaces   10\n\n\t7",
    "don't can't I'LL",
    "héllo naïve 日本語 🤖👨‍👩‍👧 مرحبا",
    "def f(x):\n    return x**2  # ok",
    "a\r\nb\u00a0x\u2028y ﬁ ½ Å",
)
ALPHABETS = (range(32, 127), range(160, 0x2000), range(0x3000, 0xA000), range(0x1F300, 0x1F700))
CONVERSATION = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
)
RENDERED = (
    "<|im_start|>system\nBe brief.<|im_end|>\n"
    "<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def check(directory: Path, random_texts: int = 300, seed: int = 0) -> None:
    """Make sure that a directory holds SmolLM2's tokenizer.

    Raises:
        Unusable: it does not; the message says which check failed.
    """
    tokenizer = pretrained.tokenizer(directory)
    ends = read_json(directory / "generation_config.json").get("eos_token_id")
    failed = {
        "its answers end with another token": tokenizer.eos_token != END
        or tokenizer.eos_token_id != END_ID
        or ends not in (END_ID, [END_ID]),
        "its chat template is another one": _render(tokenizer) != RENDERED,
        "a number is not split into digits": len(_encode(tokenizer, "2024")) != len("2024"),
        "a text changes when it is encoded and decoded": not all(
            _returns(tokenizer, text) for text in (*TEXTS, RENDERED, *texts(random_texts, seed))
        ),
    }
    for reason, wrong in failed.items():
        if wrong:
            raise Unusable(f"what was fetched is not SmolLM2-135M-Instruct: {reason}.")


def texts(n: int, seed: int) -> list[str]:
    """Random texts of several scripts and of emoji."""
    source = random.Random(seed)
    return [
        "".join(
            chr(source.choice(source.choice(ALPHABETS))) for _ in range(source.randrange(1, 40))
        )
        for _ in range(n)
    ]


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _returns(tokenizer: Any, text: str) -> bool:
    ids = _encode(tokenizer, text)
    return bool(tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text)


def _render(tokenizer: Any) -> str:
    return str(
        tokenizer.apply_chat_template([*CONVERSATION], tokenize=False, add_generation_prompt=True)
    )
