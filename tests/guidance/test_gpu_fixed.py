"""Captured steps on a GPU: the same numbers, without a wait. Skips itself where there is none."""

import numpy as np
import pytest
import torch

from networks import VOCAB, configs
from test_backbone import build, history, ragged
from trimtab.scoring import shared
from trimtab.scoring.captured import FixedSteps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def eager(family):
    backbone = build(configs()[family], device="cuda")
    backbone.fixed = FixedSteps(backbone.network, backbone.pool, graphs=False)
    return backbone


@pytest.mark.parametrize("family", configs())
def test_captured_steps_equal_eager_ones_and_the_cpu(family, monkeypatch):
    monkeypatch.setattr(shared, "DEPTHS", (8, 2))
    monkeypatch.setattr(shared, "SAVED", 4)
    rng = np.random.default_rng(1)
    served = {
        "cpu": build(configs()[family]),
        "eager": eager(family),
        "captured": build(configs()[family], device="cuda"),
        "packed": build(configs()[family], device="cuda"),
    }
    served["packed"].fixed = None
    prefixes, _ = ragged(rng, 6, longest=60)
    prefixes[5] = prefixes[4].copy()
    for _ in range(5):
        candidates = [rng.permutation(VOCAB)[: rng.integers(11, 16)] for _ in range(6)]
        for groups in (candidates, None):
            hidden = {
                name: backbone.hidden(range(6), prefixes, groups).cpu()
                for name, backbone in served.items()
            }
            for name in ("eager", "captured", "packed"):
                torch.testing.assert_close(hidden[name], hidden["cpu"], rtol=1e-4, atol=1e-4)
        prefixes = [np.append(prefix, rng.integers(VOCAB)) for prefix in prefixes]
    captured = [step.graph for step in served["captured"].fixed.steps.values()]
    assert sum(graph is not None for graph in captured) >= 2, "with candidates, and without"


def test_a_captured_step_waits_for_nothing():
    backbone, rng = build(configs()["llama"], device="cuda"), np.random.default_rng(2)
    prefixes, _ = ragged(rng, 3, longest=60)
    candidates = [np.arange(4)] * 3
    for _ in range(3):
        backbone.hidden(range(3), prefixes, candidates)
        prefixes = [np.append(prefix, 3) for prefix in prefixes]
    torch.cuda.set_sync_debug_mode("error")
    try:
        hidden = backbone.hidden(range(3), prefixes, candidates)
        with pytest.raises(RuntimeError, match="synchron"):
            hidden.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_steps_of_two_shapes_keep_their_results():
    """All graphs of a network share their memory: a later one must not change an earlier result."""
    backbone, rng = build(configs()["llama"], device="cuda"), np.random.default_rng(3)
    prefixes, candidates = ragged(rng, 4, longest=60)
    for _ in range(3):
        few = backbone.hidden([0], prefixes[:1], candidates[:1])
        copy = few.clone()
        backbone.hidden(range(4), prefixes, candidates)
        assert torch.equal(few, copy)


def test_a_long_pool_history_on_cuda_equals_the_cpu():
    """Evictions, forks and new prompts between replays."""
    rng = np.random.default_rng(4)
    small = {"pool_bytes": 200 * 3 * 2 * 2 * 16 * 4}
    served = [build(configs()["llama"], device=device, **small) for device in ("cpu", "cuda")]
    for keys, prefixes, candidates in history(rng, steps=25, longest=29):
        expected, actual = (b.hidden(keys, prefixes, candidates).cpu() for b in served)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
