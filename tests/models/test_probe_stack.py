"""Several probes as one network, equal to each of them."""

import torch

from trimtab_models.probe import Probe, ProbeConfig
from trimtab_models.probe_stack import ProbeStack


def probes(count, outputs):
    made = [
        Probe(ProbeConfig(hidden_size=12, rank=3, width=5, outputs=outputs)).eval()
        for _ in range(count)
    ]
    for one in made:
        for part in (one.level, one.factors):
            torch.nn.init.normal_(part.weight)
            torch.nn.init.normal_(part.bias)
    return made


@torch.no_grad()
def test_a_stack_equals_each_probe():
    for count, outputs in ((2, 1), (5, 4)):
        made, states, tokens = probes(count, outputs), torch.randn(3, 2, 12), torch.randn(3, 7, 12)
        tables = torch.stack([one.table(tokens) for one in made])  # [probes, rows, tokens, rank]
        actual = ProbeStack(made)(states, tables)
        for one, own, table in zip(made, actual, tables, strict=True):
            expected = one(states[:, None].expand(-1, 7, -1, -1), table)
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)
        assert (actual[0] - actual[1]).abs().max() > 0.1, "the control: probes differ"
