"""log_ratio: s(prefix + v) = α·(log π_tuned(v | prefix) − log π_ref(v | prefix)).

Without a reference model it is α·log π_r(v | prefix), an autoregressive reward (GenARM,
arXiv 2410.08193); with one it is DPO's implicit reward or proxy-tuning (arXiv 2401.08565).
"""

from collections.abc import Sequence
from typing import Self

from torch import Tensor

from trimtab.config import ScorerSpec
from trimtab.scorers.base import Scorer, gather_candidates
from trimtab.scorers.loader import Loader, tokenizer
from trimtab.scorers.vocabulary import VocabularyScorer
from trimtab.scoring.backbone import Backbone
from trimtab.scoring.pool import Ids, PrefixPool
from trimtab.scoring.text import Prompt
from trimtab_models import checkpoint


class LogRatioScorer(Scorer):
    """Log-probabilities of one language model, or their difference between two."""

    family = "log_ratio"
    checkpointed = True
    hot = True
    whole = True

    def __init__(self, tuned: VocabularyScorer, reference: VocabularyScorer | None = None) -> None:
        super().__init__(tuned.info)
        self.tuned = tuned
        self.reference = reference
        self.models = [tuned] if reference is None else [tuned, reference]

    @classmethod
    def pools(cls, spec: ScorerSpec) -> int:
        """One for each model."""
        return 1 if spec.reference is None else 2

    @classmethod
    def precheck(cls, spec: ScorerSpec) -> None:
        """See Scorer.precheck."""
        for path in filter(None, (spec.path, spec.reference)):
            tokenizer(path)
            checkpoint.precheck(path, "log_ratio")

    @classmethod
    def load(cls, spec: ScorerSpec, loader: Loader) -> Self:
        """See Scorer.load."""
        tuned = VocabularyScorer(*loader.native(spec.path, "log_ratio"))
        if spec.alpha is not None:
            tuned.info = tuned.info.model_copy(update={"alpha": spec.alpha})
        reference = None
        if spec.reference is not None:
            reference = VocabularyScorer(*loader.native(spec.reference, "log_ratio"))
        return cls(tuned, reference)

    def score(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        strengths: Sequence[float],
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """See Scorer.score."""
        ratio = self._log_p(self.tuned, keys, prefixes, candidates)
        if self.reference is not None:
            ratio = ratio - self._log_p(self.reference, keys, prefixes, candidates)
        return self.info.alpha * ratio

    @property
    def backbones(self) -> Sequence[Backbone]:
        """Of both models."""
        return [backbone for model in self.models for backbone in model.backbones]

    def _log_p(
        self,
        model: VocabularyScorer,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
    ) -> Tensor:
        """log π(v | prefix), [Σ candidates]; the two vocabularies may be padded differently."""
        return gather_candidates(model.table(keys, prefixes).log_softmax(-1), candidates)

    @property
    def keeps_time(self) -> bool:
        """See Scorer.keeps_time."""
        return all(model.keeps_time for model in self.models)

    def reset(self) -> None:
        """Drop every prefix from both models."""
        for model in self.models:
            model.reset()

    def forget(self, key: int) -> None:
        """Drop the row's prefix from both models."""
        for model in self.models:
            model.forget(key)

    @property
    def prefix_pools(self) -> Sequence[PrefixPool]:
        """One of each model."""
        return [pool for model in self.models for pool in model.prefix_pools]

    @property
    def parameters(self) -> int:
        """Parameters of both models."""
        return sum(model.parameters for model in self.models)

    @property
    def tokens_forwarded(self) -> int:
        """Prefix tokens that went through both models."""
        return sum(model.tokens_forwarded for model in self.models)

    @property
    def flops(self) -> int:
        """Of both models; see Scorer.flops."""
        return sum(2 * model.parameters * model.tokens_forwarded for model in self.models)
