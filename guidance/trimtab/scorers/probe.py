"""probe: a value head on the base's own states, for every next token from one small product.

The engine hands over the states h and m of each row (scoring/states.py), so the scorer forwards no
token. Its outputs are read as those of `head` and `distribution`: a link, or the soft value of a
histogram over returns. A probe works with the base that it was trained on, and with no other.
"""

from collections.abc import Hashable, Sequence
from typing import Self
from weakref import ref

import numpy as np
import torch
from torch import Tensor

from trimtab.config import ScorerSpec
from trimtab.errors import ScorerLoadError
from trimtab.scorers.base import Scorer, are_whole, soft_values
from trimtab.scorers.loader import Loader
from trimtab.scoring.pool import Ids
from trimtab.scoring.text import Prompt
from trimtab_models import checkpoint, probe
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.probe import Probe
from trimtab_models.probe_stack import ProbeStack
from trimtab_models.readout import LINKS, soft_value_at
from trimtab_models.transfers import upload


class ProbeScorer(Scorer):
    """s(prefix + v) of the candidates, from the states before v."""

    family = "probe"
    checkpointed = True
    hot = True
    reads = "states"
    whole = True
    reads_states = True

    def __init__(self, info: ScorerInfo, network: Probe, table: Tensor) -> None:
        """table: [vocab, rank], `network.table` of the base's embedding.

        Raises:
            ScorerLoadError: its outputs do not fit its description.
        """
        super().__init__(info)
        outputs = network.config.outputs
        if (info.support is None) != (outputs == 1):
            raise ScorerLoadError(
                f"its {outputs} outputs do not fit its description; expected one output, or a "
                '"support" of the returns of several'
            )
        self.network, self.vectors = network, table
        self._states = self._products = 0  # scored since it was loaded
        self._stacked: list[ref[ProbeScorer]] = []
        self._stack: ProbeStack | None = None  # of the probes that were scored last with this one
        self.distributional = info.support is not None
        if info.support is not None:
            self.returns = torch.linspace(*info.support, outputs)
            """The return of each output, [outputs] float32 on the host."""

    @classmethod
    def precheck(cls, spec: ScorerSpec) -> None:
        """See Scorer.precheck."""
        checkpoint.precheck(spec.path, "probe")

    @classmethod
    def load(cls, spec: ScorerSpec, loader: Loader) -> Self:
        """See Scorer.load."""
        if loader.base is None:
            raise ScorerLoadError(
                "it reads the base's states, which are not at hand here; a probe needs the base "
                "in the same engine"
            )
        network, info = checkpoint.load(spec.path, family="probe")
        probe.check_base(network, spec.path, loader.base)
        with torch.inference_mode():
            table = network.table(probe.embedding(loader.base))
        return cls(info, network.to(loader.device), table.to(loader.device))

    @torch.inference_mode()
    def score(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        strengths: Sequence[float],
        prompts: Sequence[Prompt] = (),
        *,
        states: Tensor | None = None,
    ) -> Tensor:
        """See Scorer.score; states: h and m of each row, [rows, 2, hidden]."""
        if self.distributional and are_whole(candidates, len(self.vectors)):
            states = self._checked(states, len(candidates) * len(self.vectors))
            # Row by row: the outputs of one row stay in a CPU's cache.
            rows = zip(*self.network.parts(states), strengths, strict=True)
            return torch.cat(
                [
                    soft_value_at(level[:, None] + factors @ self.vectors.mT, self.returns, c)
                    for level, factors, c in rows
                ]
            )
        outputs = self.histograms(keys, prefixes, candidates, prompts, states=states)
        if not self.distributional:
            return LINKS[self.info.link](outputs[:, 0])
        return soft_values(outputs, self.returns, candidates, strengths)

    @torch.inference_mode()
    def histograms(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids],
        prompts: Sequence[Prompt] = (),
        *,
        states: Tensor | None = None,
    ) -> Tensor:
        """The outputs for each candidate, [Σ candidates, outputs]; see Scorer.score.

        Raises:
            ValueError: there are no states.
        """
        if are_whole(candidates, len(self.vectors)):
            states = self._checked(states, len(candidates) * len(self.vectors))
            return self.network.every(states, self.vectors).flatten(0, 1)
        tokens, real = self._padded(candidates)
        states = self._checked(states, tokens.numel())
        level, factors = self.network.parts(states)
        outputs = torch.baddbmm(level[:, None], self.vectors[tokens], factors.mT)
        return outputs.flatten(0, 1)[real]

    @property
    def stacks(self) -> tuple[Hashable, ...]:
        """See Scorer.stacks: the sizes, and what is done with the outputs."""
        config = self.network.config
        sizes = config.hidden_size, config.rank, config.width, config.outputs
        kept = self.vectors.dtype, self.vectors.device
        return (ProbeScorer, *sizes, *kept, self.info.support, self.info.link)

    @torch.inference_mode()
    def score_stack(
        self,
        others: Sequence[Scorer],
        candidates: Sequence[Ids],
        strengths: Sequence[Sequence[float]],
        states: Tensor,
    ) -> Tensor:
        """See Scorer.score_stack."""
        probes = [self, *(other for other in others if isinstance(other, ProbeScorer))]
        if self._stack is None or [each() for each in self._stacked] != probes:
            self._stacked = [ref(each) for each in probes]
            self._stack = ProbeStack([each.network for each in probes])
        tokens, real = self._padded(candidates)
        read, *_ = [each._checked(states, tokens.numel()) for each in probes]
        outputs = self._stack(read, torch.stack([each.vectors[tokens] for each in probes]))
        packed = outputs.flatten(1, 2)[:, real]  # [probes, Σ candidates, outputs]
        if not self.distributional:
            return LINKS[self.info.link](packed[..., 0])
        scores = soft_values(
            packed.flatten(0, 1),
            self.returns,
            [*candidates] * len(probes),
            [c for own in strengths for c in own],
        )
        return scores.view(len(probes), -1)

    def _checked(self, states: Tensor | None, places: int) -> Tensor:
        """The states on the probe's device, to score `places` tokens; NaN if all are lost."""
        if states is None:
            raise ValueError("a probe scores the base's states, not tokens; pass states")
        if states.shape[-1] != self.network.config.hidden_size:
            states = states.new_full((len(states), 2, self.network.config.hidden_size), torch.nan)
        self._states += len(states)
        self._products += places * self.network.config.outputs
        return states.to(self.vectors.device)

    def _padded(self, candidates: Sequence[Ids]) -> tuple[Tensor, Tensor | slice]:
        """Candidates of each row, 0 after the last, [rows, width]; and where they are, flat."""
        counts = np.array([len(group) for group in candidates])
        real = np.arange(counts.max()) < counts[:, None]
        tokens = np.zeros(real.shape, dtype=np.int64)
        # Larger ids use the last entry, as in Backbone.
        tokens[real] = np.minimum(np.concatenate(candidates), len(self.vectors) - 1)
        places = np.flatnonzero(real)
        if len(places) == tokens.size:
            return upload(torch.from_numpy(tokens), self.vectors.device), slice(None)
        both = np.concatenate((tokens.ravel(), places))  # one copy
        sent = upload(torch.from_numpy(both), self.vectors.device)
        return sent[: tokens.size].view(tokens.shape), sent[tokens.size :]

    @property
    def keeps_time(self) -> bool:
        """See Scorer.keeps_time."""
        return True

    @property
    def parameters(self) -> int:
        """Parameters of the probe, without the base's embedding."""
        return self.network.num_parameters()

    @property
    def flops(self) -> int:
        """See Scorer.flops: A and B once for each state, a product of rank r for each output
        of each place, padding included.

        P·e_v is computed when the probe is loaded, so it is left out.
        """
        by_state = self.parameters - self.network.tokens.weight.numel()
        return 2 * (by_state * self._states + self.network.config.rank * self._products)
