"""text: a classifier that reads text, with its own tokenizer.

    s(prefix + v) = trimtab_models.classify of text(prefix + v): a logit, or log p(label)

Any `*ForSequenceClassification` of transformers, encoder or decoder: reward models, formality
rankers, and encoders of `trimtab train`, whose checkpoints say how they read a text. Every
candidate's whole text goes through the network, without a prefix cache: this is the slow family.
Scores of recent texts are cached.

With a delimiter, the classifier scores the answer up to the end of each of its steps, as process
reward models do; also a `*ForTokenClassification`, at its last token. See `steps`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any, Self, get_args

import torch
from torch import Tensor

from trimtab.config import ScorerSpec
from trimtab.scorers.base import Scorer
from trimtab.scorers.loader import Loader
from trimtab.scorers.steps import Steps
from trimtab.scoring import deadline
from trimtab.scoring.pool import Ids, keep
from trimtab.scoring.text import Prompt, Reader, Texts, Turns
from trimtab_models import classify
from trimtab_models import texts as forms
from trimtab_models.checkpoint import ScorerInfo, read_info
from trimtab_models.classify import Classifier
from trimtab_models.info import Reads
from trimtab_models.readout import LINKS

CACHED_TEXTS = 1 << 16
"""Maximum number of texts whose scores are cached; the least recently used are dropped."""


class TextScorer(Scorer):
    """A classifier over texts, batched by length over rows and candidates.

    A text longer than the classifier's window is cut at the start: first the prompt, then the
    answer. `shortened` returns by how many tokens.

    Args:
        classifier: scores the texts.
        reader: decodes the base's tokens.
        reads: the form of text that the classifier was trained on.
        steps: where it scores an answer; by default at its end.
    """

    family = "text"

    def __init__(
        self,
        info: ScorerInfo,
        classifier: Classifier,
        reader: Reader,
        reads: Reads = "text",
        steps: Steps | None = None,
    ) -> None:
        super().__init__(info)
        self.classifier = classifier
        self.tokenizer = classifier.tokenizer
        self.reader = reader
        self.reads, self._form = reads, reads
        self.window = classifier.window
        self.steps = steps
        special = set(getattr(reader.decoder, "all_special_ids", ()))
        self._ends = special - {getattr(reader.decoder, "unk_token_id", None)}
        self._scores: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        self._shortened: OrderedDict[int, int] = OrderedDict()
        self._forwarded = 0

    @classmethod
    def precheck(cls, spec: ScorerSpec) -> None:
        """See Scorer.precheck."""
        classify.precheck(spec.path, spec.label, steps=spec.delimiter is not None)

    @classmethod
    def load(cls, spec: ScorerSpec, loader: Loader) -> Self:
        """See Scorer.load."""
        steps = None
        if spec.delimiter is not None:
            steps = Steps(spec.delimiter, spec.aggregate or "last", spec.step_token)
        classifier = classify.load(
            spec.path, spec.label, steps=steps is not None, dtype=torch.float32
        )
        info = read_info(spec.path)
        if info.family != "text":
            info = ScorerInfo(objective="text classifier")
        spec = spec.model_copy(update={"reads": spec.reads or info.reads})
        render = loader.render(spec, classifier.tokenizer, get_args(Reads))
        loader.cast(classifier.model).to(loader.device)
        reads: Any = spec.reads or ("chat" if render is not None else "text")
        return cls(info, classifier, Reader(loader.decoder(), render), reads, steps)

    def score(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        strengths: Sequence[float],
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """See Scorer.score."""
        texts = self.reader.read(keys, prefixes, candidates, prompts)
        read = [
            (row.prompt, self._parts(answer, token))
            for row, group in zip(texts, candidates, strict=True)
            for answer, token in zip(row.answers, group.tolist(), strict=True)
        ]
        pairs = [(prompt, part) for prompt, parts in read for part in parts]
        digests = [_digest(*pair) for pair in pairs]
        missing = {d: p for d, p in zip(digests, pairs, strict=True) if d not in self._scores}
        fresh = dict(zip(missing, self._forward(list(missing.values())), strict=True))
        results = [fresh.get(digest) or self._scores[digest] for digest in digests]
        for digest, result in zip(digests, results, strict=True):
            keep(self._scores, digest, result, CACHED_TEXTS)
        ahead = iter(results)
        whole = [self._whole(list(islice(ahead, len(parts)))) for _, parts in read]
        self._note_shortened(keys, texts, whole)
        return torch.tensor([score for score, _ in whole])

    def _parts(self, answer: str, token: int) -> list[str]:
        """The texts of a candidate that are scored: the answer, or up to each of its steps."""
        if self.steps is None:
            return [answer]
        return self.steps.texts(answer, ended=token in self._ends)

    def _whole(self, parts: Sequence[tuple[float, int]]) -> tuple[float, int]:
        """A candidate's score, and how many tokens did not fit, from those of its texts."""
        if self.steps is None:
            return parts[0]
        lost = max((lost for _, lost in parts), default=0)
        return self.steps.value([score for score, _ in parts]), lost

    def refusal(self, turns: Turns) -> str | None:
        """See Scorer.refusal."""
        return self.reader.refusal(turns)

    def shortened(self, key: int) -> int:
        """See Scorer.shortened."""
        return self._shortened.get(key, 0)

    def forget(self, key: int) -> None:
        """Drop the row's prompt."""
        self.reader.forget(key)
        self._shortened.pop(key, None)

    @property
    def parameters(self) -> int:
        """Parameters of the classifier."""
        return self.classifier.model.num_parameters()

    @property
    def tokens_forwarded(self) -> int:
        """Tokens of all texts that went through the classifier."""
        return self._forwarded

    def _note_shortened(
        self, keys: Sequence[int], texts: Sequence[Texts], results: Sequence[Any]
    ) -> None:
        at = 0
        for key, row in zip(keys, texts, strict=True):
            end = at + len(row.answers)
            keep(self._shortened, key, max(lost for _, lost in results[at:end]), CACHED_TEXTS)
            at = end

    def _forward(self, texts: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """(score, tokens that did not fit) of each prompt and answer."""
        inputs = [
            forms.inputs(self.tokenizer, self.window, self._form, prompt, answer)
            for prompt, answer in texts
        ]
        self._forwarded += sum(len(one["input_ids"]) for one, _ in inputs)
        outputs = self.classifier.score([one for one, _ in inputs], between=deadline.check)
        scores = LINKS[self.info.link](outputs)
        return [(float(score), lost) for score, (_, lost) in zip(scores, inputs, strict=True)]


def _digest(prompt: str, answer: str) -> bytes:
    # Scores are cached by digest, not by text: texts are long and candidates are many.
    both = f"{len(prompt)}:{prompt}{answer}".encode("utf-8", "surrogatepass")
    return blake2b(both, digest_size=16).digest()
