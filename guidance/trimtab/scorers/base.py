"""The one interface of all scorer families.

A scorer gives a score to each candidate of each row's prefix.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from trimtab.config import ScorerSpec
from trimtab.errors import ScorerLoadError
from trimtab.scorers.loader import Loader, tokenizer
from trimtab.scoring.backbone import Backbone
from trimtab.scoring.cross import CrossBackbone
from trimtab.scoring.pool import Ids, PrefixPool
from trimtab.scoring.text import Prompt, Turns
from trimtab_models import checkpoint
from trimtab_models.checkpoint import Family, ScorerInfo
from trimtab_models.info import FORESEES
from trimtab_models.readout import soft_value
from trimtab_models.transfers import upload


class Scorer(ABC):
    """s(prefix + v), the score of the text so far and one more token, for every candidate v.

    Only the differences between a row's candidates steer it: what all of them share, such as a
    penalty on the length, cancels. Searches, and scores of whole texts, use the value itself.

    A score is a pure function of (prefix, candidate, strength, prompt): state between steps only
    saves time. `trimtab.testing.check_scorer` tests this.
    """

    family: ClassVar[str]
    """The family's name, in `--scorer NAME=PATH,family=...` and in GET /v1/scorers."""
    checkpointed: ClassVar[bool] = False
    """Whether its path is a checkpoint of `trimtab train`, whose config.json has a ScorerInfo."""
    composes: ClassVar[bool] = False
    """Whether it combines other scorers, which are then loaded first."""
    hot: ClassVar[bool] = False
    """Whether it can be hot-loaded: data only, never code."""
    distributional: bool = False
    """Whether it has `histograms` of returns, which floors need."""
    whole: bool = False
    """Whether it scores the whole vocabulary at once, so that k may be "all"."""
    reads_states: bool = False
    """Whether `score` and `histograms` get the base's states as a keyword, `states`: h and m of
    each row (see scoring/states.py), [rows, 2, hidden] float32, NaN in a row whose states are lost.
    """
    ensemble: bool = False
    """Whether it is the mean of several heads, so that `score` gets λ of each row as a keyword,
    `cautions`, and takes λ times their spread off."""
    reads: str = "tokens"
    """Its input: the base's tokens, or text and in which form; see ScorerSpec.reads."""

    def __init__(self, info: ScorerInfo) -> None:
        self.info = info

    @property
    def foresees(self) -> bool:
        """Whether its distributions tell what the rest of an answer costs; see trimtab.budget."""
        known = self.info.known_at_end
        return self.distributional and (known is None or known >= FORESEES)

    @classmethod
    def pools(cls, spec: ScorerSpec) -> int:
        """Number of its prefix pools, in the memory that all scorers share."""
        return 0

    @classmethod  # noqa: B027  most families have nothing to check
    def precheck(cls, spec: ScorerSpec) -> None:
        """Refuse what `load` would refuse: before an engine starts, fast, and in little memory.

        Without it, the engine starts first, and ends with the same message. Raises as `load`.
        """

    @classmethod
    def load(cls, spec: ScorerSpec, loader: Loader) -> Self:
        """Load a scorer from its specification; it may read any files at `spec.path`.

        Raises:
            ScorerLoadError: it cannot be loaded, or not served exactly; the user reads its message.
            Exception: likewise; the user reads only its class, and the name of the file of an
                OSError, since messages of other libraries can hold anything.
        """
        raise ScorerLoadError(f"a {cls.family} scorer cannot be loaded from a path")

    @abstractmethod
    def score(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        strengths: Sequence[float],
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """Scores of all candidates, packed in row order: [Σ candidates], float32.

        keys: one number per row, the same in every step; only a hint for caches.
        prefixes: prompt and completion so far, at least one token, each [length] int64.
        candidates: possible next tokens, at least one per row, each [candidates] int64. The
            result may be on any device.
        strengths: the factor of each row's scores; most families ignore it.
        prompts: of each row, with the number of its tokens; if absent, the whole prefix is the
            answer. Most families ignore them.

        May raise anything: the affected rows lose their guidance, the engine continues.
        """

    @property
    def stacks(self) -> Hashable:
        """Scorers with the same value, not None, can score the same rows together."""
        return None

    def score_stack(
        self,
        others: Sequence["Scorer"],
        candidates: Sequence[Ids],
        strengths: Sequence[Sequence[float]],
        states: Tensor,
    ) -> Tensor:
        """The scores of this scorer and of others that stack with it: [scorers, Σ candidates].

        strengths: of each scorer, as in `score`. states: see `reads_states`.
        """
        raise NotImplementedError(f"a {self.family} scorer does not stack")

    @property
    def backbones(self) -> Sequence[Backbone]:
        """The networks, with the base's tokenizer, that a call reads; once for each time.

        Those that several calls of a step read are forwarded once for all (scoring/common.py).
        """
        return ()

    @property
    def keeps_time(self) -> bool:
        """Whether calls end by themselves, at most one forward after their deadline.

        Other calls run in a thread, which is abandoned if a call takes too long (scoring/calls.py).
        """
        return False

    def reset(self) -> None:  # noqa: B027
        """Drop all cached state, after a call was interrupted."""

    def forget(self, key: int) -> None:  # noqa: B027  a scorer without a cache has nothing to do
        """Drop what is kept for a row that has ended."""

    def refusal(self, turns: Turns) -> str | None:
        """Why the scorer cannot read a conversation; None if it can, or reads only tokens."""
        return None

    def shortened(self, key: int) -> int:
        """Maximum number of tokens by which a row's last texts exceeded the scorer's window."""
        return 0

    @property
    def prefix_pools(self) -> Sequence[PrefixPool]:
        """The pools of its networks, of which an operator sees the use."""
        return ()

    @property
    def parameters(self) -> int:
        """Number of parameters of the scorer's networks."""
        return 0

    @property
    def tokens_forwarded(self) -> int:
        """Tokens that went through the scorer's networks since it was loaded.

        Of rows that several scorers read from a common backbone, the first one counts them.
        """
        return 0

    @property
    def flops(self) -> int:
        """Floating-point operations of its networks since then, two per parameter and token."""
        return 2 * self.parameters * self.tokens_forwarded


class NetworkScorer(Scorer):
    """A scorer that is one network behind one prefix pool."""

    network: ClassVar[Family] = "head"
    """The kind of checkpoint that it loads."""
    checkpointed = True
    hot = True

    def __init__(self, info: ScorerInfo, backbone: Backbone | CrossBackbone) -> None:
        super().__init__(info)
        self.backbone = backbone
        self.reads = backbone.reads

    @classmethod
    def pools(cls, spec: ScorerSpec) -> int:
        """One."""
        return 1

    @classmethod
    def precheck(cls, spec: ScorerSpec) -> None:
        """See Scorer.precheck."""
        tokenizer(spec.path)
        checkpoint.precheck(spec.path, cls.network)

    @classmethod
    def load(cls, spec: ScorerSpec, loader: Loader) -> Self:
        """See Scorer.load."""
        return cls(*loader.network(spec, cls.network))

    @property
    def backbones(self) -> Sequence[Backbone]:
        """See Scorer.backbones."""
        return [self.backbone] if isinstance(self.backbone, Backbone) else []

    @property
    def keeps_time(self) -> bool:
        """See Scorer.keeps_time; another tokenizer or a template may take any time."""
        return isinstance(self.backbone, Backbone)

    def reset(self) -> None:
        """Drop every prefix."""
        self.backbone.reset()

    def forget(self, key: int) -> None:
        """Drop the row's prefix."""
        self.backbone.forget(key)

    def refusal(self, turns: Turns) -> str | None:
        """See Scorer.refusal."""
        if isinstance(self.backbone, CrossBackbone):
            return self.backbone.reader.refusal(turns)
        return None

    def shortened(self, key: int) -> int:
        """See Scorer.shortened."""
        return self.backbone.shortened(key)

    @property
    def prefix_pools(self) -> Sequence[PrefixPool]:
        """Its one pool."""
        backbone = self.backbone
        return [(backbone.backbone if isinstance(backbone, CrossBackbone) else backbone).pool]

    @property
    def parameters(self) -> int:
        """Parameters of backbone and head."""
        return self.backbone.model.num_parameters()

    @property
    def tokens_forwarded(self) -> int:
        """Prefix tokens and candidates that went through the backbone."""
        return self.backbone.tokens_forwarded


def soft_values(
    logits: Tensor, returns: Tensor, candidates: Sequence[Ids], strengths: Sequence[float]
) -> Tensor:
    """The soft value of each candidate's histogram at its row's strength, [Σ candidates].

    logits: [Σ candidates, bins]. returns: [bins]. strengths: one for each row.
    """
    counts = torch.tensor([len(group) for group in candidates])
    c = torch.tensor(strengths, dtype=torch.float32).repeat_interleave(counts)
    sent = upload(torch.cat((returns, c)), logits.device)  # one copy
    return soft_value(logits, *sent.split([len(returns), len(c)]))


def gather_candidates(table: Tensor, candidates: Sequence[Ids]) -> Tensor:
    """Entries of each row's candidates: [rows, vocab, …] → [Σ candidates, …].

    Larger ids use the last entry, as in Backbone.
    """
    if are_whole(candidates, table.shape[1]):
        return table.flatten(0, 1)
    row, token = upload(places(candidates, table.shape[1]), table.device)
    return table[row, token]


def are_whole(candidates: Sequence[Ids], vocab: int) -> bool:
    """Whether every row has the whole vocabulary as candidates, in order."""
    first = candidates[0]
    return (
        len(first) == vocab
        and all(group is first for group in candidates)
        and np.array_equal(first, np.arange(vocab))
    )


def places(candidates: Sequence[Ids], vocab: int) -> Tensor:
    """Row and token of each candidate, [2, Σ candidates]; larger ids become the last token."""
    rows = np.repeat(np.arange(len(candidates)), [len(c) for c in candidates])
    return torch.from_numpy(np.stack((rows, np.minimum(np.concatenate(candidates), vocab - 1))))
