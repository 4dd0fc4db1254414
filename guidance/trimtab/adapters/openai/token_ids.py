"""Tokens by id, with a local tokenizer and an upstream that names tokens as vLLM can.

The prompt is sent as a list of ids, and with `return_tokens_as_token_ids` a token is named
`token_id:N`. All scorers work, and no text is re-tokenized.
"""

from collections.abc import Sequence
from typing import Any

from trimtab.adapters.openai.client import UnusableAnswer
from trimtab.adapters.openai.config import UpstreamConfig
from trimtab.adapters.openai.naming import Fit, UpstreamPrompt
from trimtab.adapters.openai.positions import NONE, UpstreamAnswer, read_completion
from trimtab.errors import InvalidRequest, StartError
from trimtab.scoring.text import Turns, reason
from trimtab_models import pretrained
from trimtab_models.files import read_json

LENGTH = 4096
"""Maximum tokens of prompt and answer if no configuration states it."""
PREFIX = "token_id:"
AHEAD = 6
"""Prompt tokens decoded with the answer, because a token's text depends on its predecessors."""


class ById:
    """See Naming."""

    path = "completions"
    closed = True

    def __init__(self, config: UpstreamConfig) -> None:
        source = str(config.tokenizer)
        try:
            self.tokenizer = pretrained.tokenizer(source)
            self.ends = _ends(source, self.tokenizer)
        except (OSError, ValueError) as error:
            raise StartError(f"the tokenizer {source} cannot be loaded: {error}") from None
        self.decoder = self.tokenizer
        self.columns = len(self.tokenizer)
        self.longest = max(map(len, self.tokenizer.get_vocab()))
        self.length = config.length or _length(source, self.tokenizer)
        self.model, self.top = config.model, config.top

    def prompt(
        self,
        text: str | None = None,
        ids: Sequence[int] | None = None,
        turns: Turns | None = None,
    ) -> UpstreamPrompt:
        """See Naming.prompt."""
        if turns is not None:
            text = self._templated(turns)
        if ids is None:
            ids = self.tokenizer(text or "", add_special_tokens=turns is None).input_ids
        if not ids or max(ids) >= self.columns:
            raise InvalidRequest("the prompt holds no token, or one out of the vocabulary.")
        if len(ids) >= self.length:
            raise InvalidRequest(
                f"the prompt has {len(ids)} tokens; prompt and answer together have {self.length} "
                "at most. Shorten it."
            )
        return UpstreamPrompt(list(ids), turns=turns)

    def answer(self, text: str) -> list[int]:
        """See Naming.answer."""
        ids = list(self.tokenizer(text, add_special_tokens=False).input_ids)
        end = self.tokenizer.eos_token_id
        return ids if end is None else [*ids, end]

    def _templated(self, turns: Turns) -> str:
        if self.tokenizer.chat_template is None:
            raise InvalidRequest("the tokenizer has no chat template; send a prompt instead.")
        if "developer" not in str(self.tokenizer.chat_template):  # as in vLLM
            turns = [{**t, "role": t["role"].replace("developer", "system")} for t in turns]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(turns), tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as error:
            raise InvalidRequest(
                f"the chat template refuses these messages "
                f"({reason(error, self.tokenizer.chat_template)}).",
                param="messages",
            ) from None

    def release(self, prompt: UpstreamPrompt) -> None:
        """See Naming.release."""

    def body(
        self, prompt: UpstreamPrompt, output: Sequence[int], tokens: int, greedy: bool
    ) -> dict[str, Any]:
        """See Naming.body."""
        return {
            "model": self.model,
            "prompt": [*prompt.ids, *output],
            "max_tokens": tokens,
            "temperature": 0 if greedy else 1,
            "logprobs": self.top,
            "return_tokens_as_token_ids": True,
        }

    def read(self, data: Any) -> UpstreamAnswer:
        """See Naming.read."""
        return read_completion(data, self.top, self._name)

    def _name(self, token: str, _: Any) -> int:
        digits = token.removeprefix(PREFIX)
        if token == digits or not digits.isdecimal():
            raise UnusableAnswer(
                "it does not name tokens as token_id:N; leave --tokenizer out, or ask a vLLM server"
            )
        return int(digits) if int(digits) < self.columns else NONE  # padding rows of the model

    def text(self, prompt: UpstreamPrompt, output: Sequence[int]) -> str:
        """See Naming.text."""
        before = prompt.ids[-AHEAD:]
        whole = self.decode([*before, *output], skip_special_tokens=True)
        return whole[len(self.decode(before, skip_special_tokens=True)) :]

    def decode(self, token_ids: Any, /, *, skip_special_tokens: bool = False) -> str:
        """See Naming.decode."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def fit(self, output: Sequence[int], token: int) -> Fit:
        """See Naming.fit: ids can always be sent."""
        return Fit.WHOLE

    def tail(self, output: Sequence[int]) -> int:
        """See Naming.tail."""
        return 0


def _ends(source: str, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer, as in vLLM."""
    file = pretrained.file(source, "generation_config.json")
    stated = None if file is None else read_json(file).get("eos_token_id")
    more = stated if isinstance(stated, list) else [stated]
    return frozenset(end for end in (tokenizer.eos_token_id, *more) if isinstance(end, int))


def _length(source: str, tokenizer: Any) -> int:
    try:
        stated = getattr(pretrained.configuration(source), "max_position_embeddings", None)
    except (OSError, ValueError):  # a tokenizer without a model configuration
        stated = None
    if stated is None and tokenizer.model_max_length < 10**7:
        stated = tokenizer.model_max_length
    return int(stated or LENGTH)
