"""function: a Python function of prefix + candidate, as token ids or as text.

    s(prefix + v) = f(what `reads` names of prefix + v)

| reads    | f is called with                                                                 |
|----------|----------------------------------------------------------------------------------|
| `tokens` | `f(ids)`: a list of the token ids of prompt and answer (the default)             |
| `text`   | `f(text)`: prompt and answer as one text, with the base's template and special   |
|          | tokens                                                                           |
| `answer` | `f(answer)`: the text of the answer alone, without special tokens                |
| `pair`   | `f(prompt, answer)`: as for a reward. The prompt is the conversation's last      |
|          | message of the user; without a conversation, it is the prompt's text             |
| `chat`   | `f(messages)`: the conversation as a list of messages, the answer as the last    |
|          | one, of the assistant; without a conversation, the prompt is one user message    |

The answer is the answer so far with the candidate. In `answer`, `pair` and `chat`, a candidate that
ends inside a character, or that is a special token, adds nothing to it.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from trimtab.config import ScorerSpec
from trimtab.errors import ScorerLoadError
from trimtab.scorers.base import Scorer
from trimtab.scorers.loader import Loader, imported
from trimtab.scoring.pool import Ids
from trimtab.scoring.text import Detokenizer, Prompt, Reader, Turns
from trimtab.scoring.turns import last_user_text, with_answer
from trimtab_models.checkpoint import ScorerInfo

Reads = Literal["tokens", "text", "answer", "pair", "chat"]

ARGUMENTS: dict[Reads, tuple[str, ...]] = {
    "tokens": ("ids",),
    "text": ("text",),
    "answer": ("answer",),
    "pair": ("prompt", "answer"),
    "chat": ("messages",),
}
"""What the function is called with."""


class FunctionScorer(Scorer):
    """s(prefix + v) = f(…), with the arguments that `reads` names; see the module.

    f returns a float: a length, a regular expression, a verifier, a reward. It is called once for
    each candidate, one at a time, so it should be fast. It may change a list that it is given.

    Args:
        function: f.
        tokenizer: the base's; needed unless `reads` is tokens.
        reads: what f reads; default: text with a tokenizer, else tokens.

    Raises:
        ValueError: it reads text, and there is no tokenizer.
    """

    family = "function"

    def __init__(
        self,
        function: Callable[..., float],
        tokenizer: Detokenizer | None = None,
        info: ScorerInfo | None = None,
        reads: Reads | None = None,
    ) -> None:
        super().__init__(info or ScorerInfo(objective="function"))
        self.function = function
        self.tokenizer = tokenizer
        self.reads = reads or ("tokens" if tokenizer is None else "text")
        self.reader: Reader | None = None
        if tokenizer is None and self.reads != "tokens":
            raise ValueError(f"reads={self.reads} needs the base's tokenizer.")
        if tokenizer is not None and self.reads not in ("tokens", "text"):
            self.reader = Reader(tokenizer, last_user_text if self.reads == "pair" else None)

    @classmethod
    def load(cls, spec: ScorerSpec, loader: Loader) -> Self:
        """See Scorer.load."""
        if ":" not in spec.path:
            raise ScorerLoadError("a function scorer's path must be module:function")
        function = imported(spec.path)
        if not callable(function):
            raise ScorerLoadError(f"{spec.path} is not a function.")
        reads: Reads = spec.reads or "tokens"
        _check_arguments(spec.path, function, reads)
        return cls(function, None if reads == "tokens" else loader.decoder(), reads=reads)

    def score(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        strengths: Sequence[float],
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """See Scorer.score."""
        if self.reader is None:
            calls = self._wholes(prefixes, candidates)
        else:
            calls = self._answers(self.reader, keys, prefixes, candidates, prompts)
        return torch.tensor([float(self.function(*arguments)) for arguments in calls])

    def refusal(self, turns: Turns) -> str | None:
        """See Scorer.refusal."""
        return None if self.reader is None else self.reader.refusal(turns)

    def forget(self, key: int) -> None:
        """Drop the row's prompt."""
        if self.reader is not None:
            self.reader.forget(key)

    def _wholes(self, prefixes: Sequence[Ids], candidates: Sequence[Ids]) -> list[tuple[Any, ...]]:
        """The arguments of each call, for `tokens` and `text`."""
        sequences = [
            np.append(prefix, candidate).tolist()
            for prefix, group in zip(prefixes, candidates, strict=True)
            for candidate in group
        ]
        if self.tokenizer is None or self.reads == "tokens":
            return [(ids,) for ids in sequences]
        # Special tokens stay: a function may need to see where the answer begins or ends.
        return [(self.tokenizer.decode(ids),) for ids in sequences]

    def _answers(
        self,
        reader: Reader,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        prompts: Sequence[Prompt],
    ) -> list[tuple[Any, ...]]:
        """The arguments of each call, for `answer`, `pair` and `chat`."""
        calls: list[tuple[Any, ...]] = []
        for i, row in enumerate(reader.read(keys, prefixes, candidates, prompts)):
            turns = prompts[i].turns if prompts else None
            for answer in row.answers:
                match self.reads:
                    case "pair":
                        calls.append((row.prompt, answer))
                    case "chat":
                        messages = turns or [{"role": "user", "content": row.prompt}]
                        calls.append((with_answer(messages, answer),))
                    case _:
                        calls.append((answer,))
        return calls


def _check_arguments(path: str, function: Callable[..., Any], reads: Reads) -> None:
    """Refuse a function that cannot be called with what it shall read.

    Raises:
        ScorerLoadError: it takes more or fewer arguments.
    """
    names = ARGUMENTS[reads]
    try:
        inspect.signature(function).bind(*names)
    except TypeError:
        raise ScorerLoadError(
            f"reads={reads} calls {path} with ({', '.join(names)}), which it does not accept; "
            "change its parameters, or choose another reads"
        ) from None
    except ValueError:  # a function in C may not tell its parameters
        return
