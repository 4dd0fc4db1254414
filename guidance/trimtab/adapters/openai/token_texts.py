"""Tokens by their text, for an upstream whose tokenizer is unknown.

Each piece of text (its bytes, if the upstream sends them) gets a number at its first use. Only text
can be sent, so a token that ends inside a character is used only if the upstream itself continues
it within one call (choice.py).
"""

import codecs
import re
from collections.abc import Sequence
from itertools import count
from typing import Any

from trimtab.adapters.openai.config import UpstreamConfig
from trimtab.adapters.openai.naming import Fit, UpstreamPrompt
from trimtab.adapters.openai.positions import NONE, UpstreamAnswer, read_chat, read_completion
from trimtab.errors import InvalidRequest
from trimtab.scoring.text import Detokenizer, Turns

PROMPTS = 2**40
"""First number of a prompt, far above those of tokens."""
MAX_PIECES = 2**20
"""Maximum number of pieces, far more than a vocabulary has. Further pieces are ignored."""
MAX_PIECE_BYTES = 1024
UNKNOWN = "\ufffd".encode()
"""The replacement for bytes that are not text and that the server does not send."""
_ESCAPED = re.compile(r"bytes:((?:\\x[0-9a-f]{2})+)")


class Pieces:
    """Pieces of text by number: a growing table of tokens, and the prompts in use."""

    def __init__(self) -> None:
        self.tokens: list[bytes] = []
        self.numbers: dict[bytes, int] = {}
        self.prompts: dict[int, bytes] = {}
        self.next_prompt = count(PROMPTS).__next__

    def number(self, piece: bytes) -> int:
        """The number of a token."""
        if piece not in self.numbers:
            self.numbers[piece] = len(self.tokens)
            self.tokens.append(piece)
        return self.numbers[piece]

    def add_prompt(self, text: str) -> int:
        """A new number for a prompt, never reused."""
        number = self.next_prompt()
        self.prompts[number] = text.encode()
        return number

    def joined(self, token_ids: Any) -> bytes:
        """The joined bytes of ids."""
        return b"".join(
            self.prompts[i] if i >= PROMPTS else self.tokens[i] for i in map(int, token_ids)
        )


class ByText:
    """See Naming."""

    length = float("inf")
    longest = 16  # more than the average of any text
    closed = False

    def __init__(self, config: UpstreamConfig) -> None:
        self.pieces = Pieces()
        self.ends = frozenset(self.pieces.number(end.encode()) for end in config.ends)
        self.chat = config.api == "chat"
        self.path = "chat/completions" if self.chat else "completions"
        self.prefix = config.continuation == "prefix"
        self.model, self.top = config.model, config.top

    @property
    def decoder(self) -> Detokenizer:
        """See Naming.decoder."""
        return self

    @property
    def columns(self) -> int:
        """See Naming.columns."""
        return len(self.pieces.tokens)

    def prompt(
        self,
        text: str | None = None,
        ids: Sequence[int] | None = None,
        turns: Turns | None = None,
    ) -> UpstreamPrompt:
        """See Naming.prompt."""
        if ids is not None:
            raise InvalidRequest(
                "this server does not know its upstream's tokens; send text, or start it with "
                "--tokenizer.",
            )
        if self.chat and turns is None:
            raise InvalidRequest("this server's upstream takes messages alone; send messages.")
        if not self.chat and turns is not None:
            raise InvalidRequest(
                "this server's upstream completes text, and no chat template is known; send a "
                "prompt, or start the server with --tokenizer or --upstream-api chat.",
                param="messages",
            )
        read = "\n".join(turn["content"] for turn in turns) + "\n" if turns else text or ""
        return UpstreamPrompt([self.pieces.add_prompt(read)], read, turns)

    def answer(self, text: str) -> list[int]:
        """See Naming.answer: one number for all of it, as for a prompt."""
        return [self.pieces.add_prompt(text)]

    def release(self, prompt: UpstreamPrompt) -> None:
        """See Naming.release."""
        for number in prompt.ids:
            self.pieces.prompts.pop(number, None)

    def body(
        self, prompt: UpstreamPrompt, output: Sequence[int], tokens: int, greedy: bool
    ) -> dict[str, Any]:
        """See Naming.body."""
        fields = {"model": self.model, "max_tokens": tokens, "temperature": 0 if greedy else 1}
        answer = self.decode(output)
        if not self.chat:
            return {**fields, "prompt": prompt.text + answer, "logprobs": self.top}
        fields |= {"logprobs": True, "top_logprobs": self.top}
        turns: list[dict[str, Any]] = [dict(turn) for turn in prompt.turns or ()]
        if answer:
            turns.append({"role": "assistant", "content": answer})
            if self.prefix:
                turns[-1]["prefix"] = True
            else:
                fields |= {"continue_final_message": True, "add_generation_prompt": False}
        return {**fields, "messages": turns}

    def read(self, data: Any) -> UpstreamAnswer:
        """See Naming.read."""
        return (read_chat if self.chat else read_completion)(data, self.top, self._name)

    def _name(self, token: str, utf8: Any) -> int:
        escaped = _ESCAPED.fullmatch(token)
        if utf8 is not None:
            piece = bytes(list(utf8))  # bytes(5) would be 5 zeros
        elif escaped:  # OpenAI's completions escape an incomplete character
            piece = bytes.fromhex(escaped[1].replace("\\x", ""))
        else:
            piece = token.encode()
        if piece in self.pieces.numbers:
            return self.pieces.numbers[piece]
        full = len(self.pieces.tokens) >= MAX_PIECES or len(piece) > MAX_PIECE_BYTES
        return NONE if not piece or UNKNOWN in piece or full else self.pieces.number(piece)

    def text(self, prompt: UpstreamPrompt, output: Sequence[int]) -> str:
        """See Naming.text."""
        return self.decode(output, skip_special_tokens=True)

    def decode(self, token_ids: Any, /, *, skip_special_tokens: bool = False) -> str:
        """See Naming.decode."""
        kept = (i for i in token_ids if not (skip_special_tokens and i in self.ends))
        return self.pieces.joined(kept).decode(errors="replace")

    def fit(self, output: Sequence[int], token: int) -> Fit:
        """See Naming.fit."""
        if token in self.ends:
            return Fit.BROKEN if self.tail(output) else Fit.WHOLE
        cut = len(output) - self.tail(output)
        return _fit(self.pieces.joined([*output[cut:], token]))

    def tail(self, output: Sequence[int]) -> int:
        """See Naming.tail."""
        for tail in range(min(len(output), 3) + 1):
            # At most 3 bytes can wait for the last one of their character: check the last tokens.
            if _whole_end(self.pieces.joined(output[: len(output) - tail][-8:])):
                return tail
        return 0


def _fit(piece: bytes) -> Fit:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(piece)
    except UnicodeDecodeError:
        return Fit.BROKEN
    return Fit.PART if decoder.getstate()[0] else Fit.WHOLE


def _whole_end(text: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(text)
    return not decoder.getstate()[0]
