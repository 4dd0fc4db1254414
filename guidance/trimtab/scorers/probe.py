"""probe: a value head on the base's own states, for every next token from one small product.

The engine hands over the states h and m of each row (scoring/states.py), so the scorer forwards no
token. Its outputs are read as those of `head` and `distribution`: a link, or the soft value of a
histogram over returns. A probe works with the base that it was trained on, and with no other.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.config import ScorerSpec
from trimtab.errors import ScorerLoadError
from trimtab.scorers.base import Scorer, soft_values
from trimtab.scorers.loader import Loader
from trimtab.scoring.pool import Ids
from trimtab.scoring.text import Prompt
from trimtab_models import checkpoint, probe
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.probe import Probe
from trimtab_models.readout import LINKS, soft_value_at


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
        if self.distributional and self._every(candidates):
            states = self._checked(states, len(candidates) * len(self.vectors))
            outputs = self.network.every(states, self.vectors)  # [rows, vocab, bins]
            pairs = zip(outputs, strengths, strict=True)
            return torch.cat([soft_value_at(row.T, self.returns, c) for row, c in pairs])
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
        if self._every(candidates):
            states = self._checked(states, len(candidates) * len(self.vectors))
            return self.network.every(states, self.vectors).flatten(0, 1)
        tokens, mask = _padded(candidates)
        states = self._checked(states, mask.size)
        # Larger ids use the last entry, as in Backbone.
        tokens = np.minimum(tokens, len(self.vectors) - 1)
        vectors = self.vectors[torch.from_numpy(tokens).to(self.vectors.device)]
        level, factors = self.network.parts(states)
        scored = torch.baddbmm(level[:, None], vectors, factors.mT)  # [rows, width, outputs]
        if mask.all():
            return scored.flatten(0, 1)
        return scored[torch.from_numpy(mask).to(scored.device)]

    def _checked(self, states: Tensor | None, places: int) -> Tensor:
        """The states on the probe's device, to score `places` tokens; NaN if all are lost."""
        if states is None:
            raise ValueError("a probe scores the base's states, not tokens; pass states")
        if states.shape[-1] != self.network.config.hidden_size:
            states = states.new_full((len(states), 2, self.network.config.hidden_size), torch.nan)
        self._states += len(states)
        self._products += places * self.network.config.outputs
        return states.to(self.vectors.device)

    def _every(self, candidates: Sequence[Ids]) -> bool:
        """Whether every row has the whole vocabulary as candidates, in order."""
        return all(group is candidates[0] for group in candidates) and np.array_equal(
            candidates[0], np.arange(len(self.vectors))
        )

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


def _padded(candidates: Sequence[Ids]) -> tuple[Ids, NDArray[np.bool_]]:
    """The candidates of each row, 0 after the last, and where they are, both [rows, width]."""
    counts = np.array([len(group) for group in candidates])
    mask = np.arange(counts.max()) < counts[:, None]
    tokens = np.zeros(mask.shape, dtype=np.int64)
    tokens[mask] = np.concatenate(candidates)
    return tokens, mask
