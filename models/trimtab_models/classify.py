"""Classifiers of transformers: one score for each text, independent of its batch.

    s(text) = logit                             one output
            = log softmax(logits)[label]        several outputs, exactly one is true
            = log sigmoid(logits)[label]        problem_type = multi_label_classification
            = logits[label]                     problem_type = regression

A token classifier, as process reward models are, is read at the text's last token, before those
that its tokenizer adds at the end.

A text gets the same score in a batch as alone. Texts of a batch are padded on the right; decoders,
which look for the last token that is not padding, get a padding token that no text contains. One
test at start shows whether a network still gives other scores in a padded batch (XLNet reads its
last position, ConvBERT convolves over padding); then a batch holds texts of one length only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from trimtab_models import kinds, peft, pretrained
from trimtab_models.checkpoint import checked_info, verify
from trimtab_models.files import Unusable
from trimtab_models.networks import attention_of_any_shape

Inputs = Mapping[str, Sequence[int]]
"""A tokenizer's output for one text: input_ids, attention_mask, ..."""

UNBOUNDED = 10**9
"""transformers stores a larger window than this where it knows none."""
BATCH_TOKENS = 8192
"""Maximum tokens of one forward, padding included."""
PROBES = ("Is it?", "It is said to be very good, and then again it is not.")
"""Texts of different lengths, to test whether padding changes a score."""
TOLERANCE = 1e-3


class Classifier:
    """A *ForSequenceClassification, or a *ForTokenClassification, and its tokenizer.

    Args:
        model: the network, on its device.
        tokenizer: its own.
        label: the label whose output is the score, by name or by number.

    Raises:
        Unusable: there are several labels and `label` names none of them; there is one label and
            `label` is set; or the network does not run.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, label: str | None = None) -> None:
        self.model: Any = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.window = window(model, tokenizer)
        """The maximum tokens that it reads."""
        self._read = _reader(model.config, label)
        special, after = set(tokenizer.all_special_ids), tokenizer("a")["input_ids"][::-1]
        self._after = list(takewhile(special.__contains__, after))[::-1]
        """The tokens that its tokenizer adds after a text."""
        # Encoder-decoders need the same number of end tokens in every text of a batch.
        self._one_by_one = bool(model.config.is_encoder_decoder)
        self.padding_is_safe = self._test_padding()

    def score(
        self,
        inputs: Sequence[Inputs],
        batch_size: int | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """The score of each text, [texts] float32 on the host.

        batch_size: texts in a forward; by default as many as BATCH_TOKENS allows.
        between: called before each forward.
        """
        rows = [one if one["input_ids"] else empty_text(self.tokenizer) for one in inputs]
        scores = torch.empty(len(rows))
        for batch in self._batches([len(row["input_ids"]) for row in rows], batch_size):
            between()
            scores[batch] = self._read(self._forward([rows[i] for i in batch]))
        return scores

    def _batches(self, lengths: Sequence[int], batch_size: int | None) -> Iterator[list[int]]:
        """Indices of texts of similar length; the longest text of a batch sets its size."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        while order:
            longest = lengths[order[0]]
            size = batch_size or max(1, BATCH_TOKENS // longest)
            batch = order[:size]
            if not self.padding_is_safe:
                batch = [i for i in batch if lengths[i] == longest]
            if self._one_by_one:
                batch = batch[:1]
            yield batch
            order = order[len(batch) :]

    def _forward(self, rows: Sequence[Inputs]) -> Tensor:
        """Logits, [rows, labels] float32 on the host."""
        pad = self._pad(rows)
        if pad is None and len(rows) > 1:
            return torch.cat([self._forward([row]) for row in rows])
        width = max(len(row["input_ids"]) for row in rows)
        rows = [{"attention_mask": [1] * len(row["input_ids"]), **row} for row in rows]
        fill = dict.fromkeys(rows[0], 0) | {"input_ids": pad or 0}
        batch = {
            name: torch.tensor(
                [[*row[name], *[fill[name]] * (width - len(row[name]))] for row in rows],
                device=self.model.device,
            )
            for name in rows[0]
        }
        configs = (self.model.config, self.model.config.get_text_config())
        own = [config.pad_token_id for config in configs]
        try:
            for config in configs:
                config.pad_token_id = pad
            with torch.inference_mode(), attention_of_any_shape():
                logits: Tensor = self.model(**batch).logits
        finally:
            for config, before in zip(configs, own, strict=True):
                config.pad_token_id = before
        if logits.dim() == 3:  # of every token
            ends = torch.tensor([self._last(row["input_ids"]) for row in rows])
            logits = logits[torch.arange(len(rows)), ends]
        return logits.float().cpu()

    def _last(self, ids: Sequence[int]) -> int:
        """The place of a text's own last token."""
        added = len(self._after)
        if added and added < len(ids) and list(ids[-added:]) == self._after:
            return len(ids) - added - 1
        return len(ids) - 1

    def _pad(self, rows: Sequence[Inputs]) -> int | None:
        """The padding token. Decoders use it to find a row's end: without their own, they get a
        token that no row contains, so that the end is the last token, as it is without padding.
        None if the rows contain every token.
        """
        tokens = self.model.get_input_embeddings().num_embeddings
        own = self.model.config.get_text_config().pad_token_id
        if own is not None and 0 <= own < tokens:
            return int(own)
        used = {token for row in rows for token in row["input_ids"]}
        return next((token for token in range(tokens) if token not in used), None)

    def _test_padding(self) -> bool:
        """Whether a text gets the same score beside a longer one as alone.

        Raises:
            Unusable: the network does not run.
        """
        try:
            limit = min(self.window, 64)
            inputs = [self.tokenizer(text, truncation=True, max_length=limit) for text in PROBES]
            alone = torch.cat([self._forward([one]) for one in inputs])
            together = alone if self._one_by_one else self._forward(inputs)
        except Exception as error:
            raise Unusable(
                f"this {self.model.config.model_type} network does not run on its tokenizer's "
                f"output ({type(error).__name__})."
            ) from error
        return torch.allclose(alone, together, rtol=TOLERANCE, atol=TOLERANCE)


def empty_text(tokenizer: Any) -> Inputs:
    """A text without tokens, replaced by one special token of the tokenizer."""
    own = tokenizer
    ids = (own.bos_token_id, own.cls_token_id, own.eos_token_id, own.pad_token_id, 0)
    return {"input_ids": [next(token for token in ids if token is not None)]}


def load(
    path: str | Path, label: str | None = None, *, steps: bool = False, **options: Any
) -> Classifier:
    """A classifier from a directory or hub name; `options` (dtype, ...) go to transformers.

    steps: whether the texts end at steps, so that it may also be a token classifier.

    Raises:
        OSError: there is no such checkpoint, or it lacks a tokenizer or safetensors.
        Unusable, BrokenCheckpoint: it is damaged, or not a classifier of texts; see Classifier.
    """
    verify(path)
    checked_info(path, _family(steps))
    tokenizer = pretrained.tokenizer(path, truncation_side="left")
    if peft.is_adapter(path):
        return Classifier(peft.load(path, **options), tokenizer, label)
    model = pretrained.network(_auto(path), path, **options)
    return Classifier(model, tokenizer, label)


def _family(steps: bool) -> str:
    return "text with a delimiter" if steps else "text"


def _auto(path: str | Path) -> Any:
    """The class that loads a checkpoint."""
    if kinds.kind(path, pretrained.configuration(path)) == "token":
        return AutoModelForTokenClassification
    return AutoModelForSequenceClassification


def precheck(path: str | Path, label: str | None = None, *, steps: bool = False) -> None:
    """Check a classifier as `load` does, without its manifest; the weights stay on disk.

    Raises:
        as `load`.
    """
    checked_info(path, _family(steps))
    pretrained.tokenizer(path)
    if peft.is_adapter(path):
        _reader(peft.adapted(path, dtype="auto").config, label)
    else:
        network = pretrained.network(_auto(path), path, dtype="auto")
        _reader(network.config, label)


def window(model: PreTrainedModel, tokenizer: Any) -> int:
    """The maximum tokens that a network reads."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if positions and name.endswith("position_embeddings") and hasattr(module, "padding_idx"):
            # RoBERTa's first positions are for padding: of 514 it reads 512.
            positions -= 0 if module.padding_idx is None else int(module.padding_idx) + 1
    known = [n for n in (positions, tokenizer.model_max_length) if n and 0 < n < UNBOUNDED]
    return min(known, default=UNBOUNDED)


def _reader(config: Any, label: str | None) -> Callable[[Tensor], Tensor]:
    """The function from logits, [texts, labels], to scores, [texts]."""
    names = [str(config.id2label.get(i, i)) for i in range(config.num_labels)]
    if len(names) == 1:
        if label is not None:
            raise Unusable(f"the classifier has one label, {names[0]}; leave out label=.")
        return lambda logits: logits[:, 0]
    number = _number(names, label)
    match config.problem_type:
        case "regression":
            return lambda logits: logits[:, number]
        case "multi_label_classification":
            return lambda logits: torch.nn.functional.logsigmoid(logits)[:, number]
        case _:
            return lambda logits: logits.log_softmax(-1)[:, number]


def _number(names: Sequence[str], label: str | None) -> int:
    if label is not None and names.count(label) == 1:
        return names.index(label)
    if label is not None and label not in names and label.isdecimal() and int(label) < len(names):
        return int(label)
    more = ", …" if len(names) > 8 else ""
    raise Unusable(
        f"the classifier has {len(names)} labels, {', '.join(names[:8])}{more}; choose the one to "
        "score by label=NAME (or its number)."
    )
