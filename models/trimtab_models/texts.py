"""Prefixes as texts, for scorers that do not read the base's tokens; training and serving use this.

    the base's tokens → text of prompt and answer → the scorer's own tokens

A prefix may end inside a character. The partial character would decode to U+FFFD and be scored as
that, so it is left out: such a prefix has the text that ends before the character.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab_models import classify, networks
from trimtab_models.classify import Inputs
from trimtab_models.info import Reads

UNFINISHED = "\ufffd"
LEAD = 4
"""Prompt tokens that are decoded in front of an answer: some tokenizers drop the leading space of a
text, and a character that starts in the prompt may have four bytes."""


def decoded(decoder: Any, ids: Sequence[int]) -> str:
    """The text of the base's tokens, without special tokens and without a partial last character.

    decoder: the base's tokenizer.
    """
    return str(decoder.decode(ids, skip_special_tokens=True)).rstrip(UNFINISHED)


def answers(decoder: Any, prompt: Sequence[int], some: Iterable[Sequence[int]]) -> list[str]:
    """The text of each of some answers to a prompt, all as the base's tokens."""
    lead = list(prompt[-LEAD:])
    skipped = len(decoded(decoder, lead))
    return [decoded(decoder, [*lead, *answer])[skipped:] for answer in some]


def inputs(
    tokenizer: Any, window: int, reads: Reads, prompt: str, answer: str
) -> tuple[dict[str, list[int]], int]:
    """A classifier's input for one text, and how many tokens did not fit into its window.

    A text that is too long is cut at the start: first the prompt, then the answer.

    Args:
        tokenizer: the classifier's.
        window: the maximum tokens that it reads.
        reads: the form of text that it was trained on.
        prompt, answer: the two parts; for `chat`, the prompt is rendered already.
    """
    # A rendered conversation already contains its special tokens.
    options: dict[str, Any] = {"add_special_tokens": reads != "chat"}
    match reads:
        case "pair":
            parts = [prompt, answer]
        case "answer":
            parts = [answer]
        case _:
            parts = [prompt + answer]
    whole = tokenizer(*parts, **options)
    lost = len(whole["input_ids"]) - window
    if lost <= 0:
        return dict(whole), 0
    tokenizer.truncation_side = "left"
    room = window - tokenizer.num_special_tokens_to_add(pair=len(parts) == 2)
    length = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
    if reads == "pair" and length >= room:
        parts, options["truncation"] = ["", answer], "only_second"
    else:
        options["truncation"] = "only_first"
    return dict(tokenizer(*parts, **options, max_length=window)), lost


def start(tokenizer: Any) -> list[int]:
    """The special tokens before a text; those after it belong to whole texts, not to prefixes."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare), [])


def kept_from(length: int, before: int, window: int) -> int:
    """Where the part that a causal network reads of a long text begins.

    A text that does not fit loses its first tokens, a quarter of the window at a time, so that its
    start changes rarely and a prefix cache stays valid.

    Args:
        length: tokens of the text.
        before: its special tokens at the start, which are kept in any case.
        window: the maximum tokens that the network reads.
    """
    over = length - window
    if over <= 0:
        return before
    stride = max(window // 4, 1)
    return min(before + -(-over // stride) * stride, length - 1)


@dataclass(frozen=True)
class Texts:
    """How a scorer with its own tokenizer reads the base's prefixes.

    decoder: the base's tokenizer. tokenizer: the scorer's. reads: the form of text. window: the
    maximum tokens that it reads. causal: it reads from left to right, and its score is the output
    at the last token; else it is a classifier of whole texts. start: a causal network's special
    tokens before a text.
    """

    decoder: Any
    tokenizer: Any
    reads: Reads
    window: int
    causal: bool
    start: tuple[int, ...] = ()

    def inputs(self, prompt: Sequence[int], some: Sequence[Sequence[int]]) -> list[Inputs]:
        """The scorer's input for each of some answers to a prompt, given as the base's tokens."""
        text = decoded(self.decoder, prompt)
        read = self._of_causal if self.causal else self._of_classifier
        return [read(text, answer) for answer in answers(self.decoder, prompt, some)]

    def _of_classifier(self, prompt: str, answer: str) -> Inputs:
        one, _ = inputs(self.tokenizer, self.window, self.reads, prompt, answer)
        return one if one["input_ids"] else classify.empty_text(self.tokenizer)

    def _of_causal(self, prompt: str, answer: str) -> Inputs:
        own = self.tokenizer(prompt + answer, add_special_tokens=False, verbose=False)["input_ids"]
        ids = [*self.start, *own] or [self.tokenizer.eos_token_id or 0]
        kept = kept_from(len(ids), len(self.start), self.window)
        return {"input_ids": [*self.start, *ids[kept:]]}


def of(config: Any, tokenizer: Any, decoder: Any, reads: Reads) -> Texts:
    """How a network of a configuration reads texts.

    Args:
        config: of transformers.
        tokenizer: the network's own.
        decoder: the base's tokenizer.
        reads: the form of text.
    """
    if networks.is_encoder(config):
        window = classify.window(networks.skeleton(config), tokenizer)
        return Texts(decoder, tokenizer, reads, window, causal=False)
    window = positions(config) or classify.UNBOUNDED
    return Texts(decoder, tokenizer, reads, window, causal=True, start=tuple(start(tokenizer)))


def positions(config: Any) -> int | None:
    """The positions that a network was made for; None if its configuration does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)
