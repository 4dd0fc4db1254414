"""Several probes of one base and of the same sizes, as one network.

The first layers of all probes are one product, and so are the layers after them: on small batches
a product costs its call more than its arithmetic.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, silu

from trimtab_models.probe import Probe


class ProbeStack:
    """The outputs of `probes`, each equal to its own (tests/models/test_probe_stack.py)."""

    @torch.no_grad()
    def __init__(self, probes: Sequence[Probe]) -> None:
        self.outputs, self.rank = probes[0].config.outputs, probes[0].config.rank
        self.trunk = torch.cat([layer.weight for layer in _first(probes)])
        # [probes · width, 2 · hidden]
        self.trunk_bias = torch.cat([layer.bias for layer in _first(probes)])
        self.weight = torch.stack(
            [torch.cat([probe.level.weight, probe.factors.weight]).T for probe in probes]
        )  # [probes, width, outputs · (1 + rank)]
        self.bias = torch.stack(
            [torch.cat([probe.level.bias, probe.factors.bias]) for probe in probes]
        )

    def __call__(self, states: Tensor, vectors: Tensor) -> Tensor:
        """Outputs for some tokens of each row.

        states: [rows, 2, hidden], h and m. vectors: [probes, rows, tokens, rank], of the tokens, by
        each probe's own table. → [probes, rows, tokens, outputs]
        """
        n, rows = vectors.shape[:2]
        states = layer_norm(states.to(self.trunk.dtype), states.shape[-1:])
        hidden = silu(linear(states.flatten(-2), self.trunk, self.trunk_bias))
        hidden = hidden.view(rows, n, -1).transpose(0, 1)  # [probes, rows, width]
        both = torch.baddbmm(self.bias[:, None], hidden, self.weight).flatten(0, 1)
        level = both[:, None, : self.outputs]
        factors = both[:, self.outputs :].unflatten(1, (self.outputs, self.rank))
        return torch.baddbmm(level, vectors.flatten(0, 1), factors.mT).unflatten(0, (n, rows))


def _first(probes: Sequence[Probe]) -> list[nn.Linear]:
    layers = [probe.trunk[0] for probe in probes]
    return [layer for layer in layers if isinstance(layer, nn.Linear)]
