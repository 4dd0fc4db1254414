"""Steps with fixed shapes, replayed on CUDA as one graph each.

A bucket's first step runs eagerly, its second is captured, all later ones are one copy of the
packed input and one launch. The copy comes from pinned memory, so nothing waits for the device.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimtab.scoring.fixed import FixedRow, Shape, forward
from trimtab.scoring.pool import PrefixPool, keep

GRAPHS = 64
"""Most graphs of one network; those of the shapes used last stay."""


class FixedSteps:
    """The decode steps of one network, by shape.

    Args:
        network: without its head.
        pool: of its prefixes.
        graphs: whether steps are captured; without, they run eagerly on any device.
    """

    def __init__(self, network: nn.Module, pool: PrefixPool, *, graphs: bool) -> None:
        self.network, self.pool, self.graphs = network, pool, graphs
        self.memory = torch.cuda.graph_pool_handle() if graphs else None
        self.steps: OrderedDict[Shape, _Step] = OrderedDict()

    def hidden(self, rows: Sequence[FixedRow]) -> Tensor:
        """Last hidden states of each row's candidates, or of its last token if it has none.

        [Σ max(candidates, 1), hidden], in row order. The K/V of all tokens before the last one
        must be in the pool.
        """
        widest = max(len(row.candidates) for row in rows)
        shape = Shape.of(len(rows), widest, max(len(row.slots) for row in rows))
        step = self.steps.get(shape) or _Step(shape, self.pool.k.device)
        keep(self.steps, shape, step, GRAPHS)
        packed, count = shape.pack(rows)
        host = torch.from_numpy(packed)
        if step.packed.is_cuda:
            host = host.pin_memory()
        with torch.inference_mode():
            step.packed.copy_(host, non_blocking=True)
            hidden = step.run(self)
            *_, wanted = step.packed.split(shape.sizes)
            # A copy: the next replay writes to the same memory.
            return hidden.index_select(0, wanted[:count])


def on_cuda(network: nn.Module, pool: PrefixPool) -> FixedSteps | None:
    """Captured steps where the pool is on CUDA, else None: padding does not pay on a CPU."""
    return FixedSteps(network, pool, graphs=True) if pool.k.is_cuda else None


class _Step:
    """One shape's packed input, and its graph once it is captured."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape, self.runs = shape, 0
        self.packed = torch.zeros(sum(shape.sizes), dtype=torch.int32, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.out = self.packed

    def run(self, steps: FixedSteps) -> Tensor:
        """The last hidden states of all queries."""
        self.runs += 1
        if not steps.graphs or self.runs == 1:  # the first run prepares what a capture may not
            return forward(steps.network, steps.pool, self.shape, self.packed)
        if self.graph is None:
            self.graph = self._capture(steps)
        self.graph.replay()
        return self.out

    def _capture(self, steps: FixedSteps) -> torch.cuda.CUDAGraph:
        device = self.packed.device
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            # Other threads of an engine may wait for the device meanwhile.
            graph.capture_begin(pool=steps.memory, capture_error_mode="thread_local")
            try:
                self.out = forward(steps.network, steps.pool, self.shape, self.packed)
            finally:
                graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(stream)
        return graph
