"""The same numbers on a GPU. Skips itself where there is none."""

import math

import numpy as np
import pytest
import torch

from networks import LENGTH, VOCAB, configs
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers import DistributionScorer, HeadScorer
from trimtab.scoring.backbone import Backbone
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.networks import scalar_head

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def guide(device, family):
    torch.manual_seed(0)
    distribution = family is DistributionScorer
    model = scalar_head(configs()["llama"], bins=7 if distribution else 1)
    info = ScorerInfo(support=(-1.0, 4.0) if distribution else None)
    backbone = Backbone(
        model, max_length=LENGTH, pool_bytes=2**22, max_candidates=32, device=device
    )
    return Guide({"value": family(info, backbone)})


@pytest.mark.parametrize("family", [HeadScorer, DistributionScorer])
@pytest.mark.parametrize("tail", ["truncate", "mean"])
def test_a_step_equals_the_cpu(tail, family):
    rng = np.random.default_rng(0)
    base = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(0)) * 2
    fused, prefixes = {}, [rng.integers(VOCAB, size=n) for n in rng.integers(1, 60, size=5)]
    for device in ("cpu", "cuda"):
        logits, params = base.clone().to(device), GuidanceParams(scorers={"value": 1.0}, tail=tail)
        guide(device, family).step(
            logits, [(i, Row(params, 1, prefix=prefix)) for i, prefix in enumerate(prefixes)]
        )
        fused[device] = logits.cpu()
    torch.testing.assert_close(fused["cuda"], fused["cpu"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("timeout", [30.0, math.inf])
def test_the_thread_of_the_scorers_works_on_the_callers_stream(timeout):
    """Or what it reads may not be there yet: the caller's work on the stream comes first."""
    seen = []

    class Elsewhere(HeadScorer):
        keeps_time = False

        def score(self, *args):
            seen.append(torch.cuda.current_stream())
            return super().score(*args)

    base, rows = torch.randn(1, VOCAB), [(0, Row(GuidanceParams(), 1, prefix=np.arange(5)))]
    fused = []
    for kind in (HeadScorer, Elsewhere):
        scorer = guide("cuda", kind).scorers["value"]
        rows[0][1].params = GuidanceParams(scorers={"value": 1.0})
        with torch.cuda.stream(torch.cuda.Stream()) as _, torch.inference_mode():
            stream = torch.cuda.current_stream()
            logits = base.to("cuda", non_blocking=True)
            Guide({"value": scorer}, timeout).step(logits, rows)
            fused.append(logits.cpu())
    assert seen == [stream]
    assert torch.equal(*fused)
