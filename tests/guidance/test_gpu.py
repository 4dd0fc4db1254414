"""The same numbers on a GPU. Skips itself where there is none."""

import math

import numpy as np
import pytest
import torch
from probes_made import made
from transformers import AutoModelForCausalLM, AutoTokenizer

import kinds_made
import test_kinds
import tokenizers_made
from networks import LENGTH, VOCAB, configs
from trimtab import Guidance
from trimtab.config import GuidanceConfig
from trimtab.guide import Guide
from trimtab.loading import load_scorers
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers import DistributionScorer, HeadScorer
from trimtab.scoring.backbone import Backbone
from trimtab.scoring.text import Prompt
from trimtab_models import demo
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


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        (HeadScorer, {"tail": "truncate"}),
        (HeadScorer, {"tail": "mean"}),
        (DistributionScorer, {"tail": "truncate"}),
        (DistributionScorer, {"tail": "mean"}),
        (DistributionScorer, {"kl_budget": 3.0, "tail": "mean"}),
    ],
)
def test_a_step_equals_the_cpu(family, fields):
    rng = np.random.default_rng(0)
    base = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(0)) * 2
    fused, prefixes = {}, [rng.integers(VOCAB, size=n) for n in rng.integers(1, 60, size=5)]
    for device in ("cpu", "cuda"):
        logits, params = base.clone().to(device), GuidanceParams(scorers={"value": 1.0}, **fields)
        rows = [Row(params, len(prefix), prefix=prefix) for prefix in prefixes]
        guide(device, family).step(logits, list(enumerate(rows)))
        assert [row.fault for row in rows] == [None] * 5
        fused[device] = logits.cpu()
    assert not torch.equal(fused["cpu"], base)
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
        scorer = guide("cuda", kind).registry.scorers["value"]
        rows[0][1].params = GuidanceParams(scorers={"value": 1.0})
        with torch.cuda.stream(torch.cuda.Stream()) as _, torch.inference_mode():
            expected = torch.cuda.current_stream()
            logits = base.to("cuda", non_blocking=True)
            Guide({"value": scorer}, timeout).step(logits, rows)
            fused.append(logits.cpu())
    assert seen == [expected]
    assert torch.equal(*fused)


@pytest.fixture(scope="module")
def base():
    return tokenizers_made.base()


@pytest.fixture(scope="module")
def shelf(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    kinds_made.build(root, base)
    return root


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        (kind, family)
        for kind, served in test_kinds.SERVED.items()
        for family in sorted(served - {None})  # each process must collect the same
    ],
)
def test_every_family_scores_as_on_the_cpu(kind, family, base, shelf):
    rng = np.random.default_rng(0)
    prefixes = [rng.integers(3, len(base), size=n) for n in (2, 9, 23)]
    groups = [rng.integers(3, len(base), size=n) for n in (4, 1, 7)]
    prompts = [Prompt(1)] * 3
    spec = {"path": str(shelf / kind), "family": family}
    if (kind, family) == ("sequence-3", "text"):
        spec["label"] = "LABEL_1"
    config = GuidanceConfig.parse({"trimtab": {"scorers": {"s": spec}}})
    scores = []
    for device in ("cpu", "cuda"):
        [scorer] = load_scorers(
            config, max_length=48, vocab_size=len(base), tokenizer=base, device=device
        ).values()
        scores.append(scorer.score([-1, -2, -3], prefixes, groups, [1.0] * 3, prompts).cpu())
    assert scores[0].std() > 0
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {"beta": 4.0},
        {"beta": 4.0, "tail": "mean", "mass": 1.0, "k": 10},
        {"beta": -2.0, "normalize": True},
    ],
)
def test_the_demo_answers_as_on_the_cpu(fields):
    """Greedy, in float32, with left padding: the same tokens, all scorers at once."""
    tokenizer = AutoTokenizer.from_pretrained(demo.base(), padding_side="left")
    texts = [demo.chat(text) for text in demo.prompts("test", 4, seed=1)]
    answers = []
    for device in ("cpu", "cuda"):
        model = AutoModelForCausalLM.from_pretrained(demo.base(), dtype=torch.float32).to(device)
        guidance = Guidance(demo.scorers(), tokenizer, device=device, max_length=128, **fields)
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(
            device
        )
        processors = guidance.processors(**inputs)
        out = model.generate(
            **inputs, max_new_tokens=24, do_sample=False, logits_processor=processors
        )
        answers.append(out[:, inputs.input_ids.shape[1] :].tolist())
    assert answers[0] == answers[1]


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    place = tmp_path_factory.mktemp("probes")
    return {
        "histogram": str(made(place / "histogram", demo.base(), support=(-1.0, 1.0))),
        "number": str(made(place / "number", demo.base(), outputs=1, seed=1, link="sigmoid")),
    }


@pytest.mark.parametrize("k", [12, "all"])
def test_probes_steer_as_on_the_cpu(k, probes):
    """The base's states, its rows' means, the scores and the greedy tokens, with left padding."""
    tokenizer = AutoTokenizer.from_pretrained(demo.base(), padding_side="left")
    texts = [demo.chat(text) for text in demo.prompts("test", 4, seed=1)]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    answers, states, scores = [], [], []
    for device in ("cpu", "cuda"):
        model = AutoModelForCausalLM.from_pretrained(demo.base(), dtype=torch.float32).to(device)
        guidance = Guidance(
            probes, tokenizer, model=model, device=device, max_length=128, beta=8.0, k=k, mass=1.0
        )
        batch = inputs.to(device)
        processors = guidance.processors(**batch)
        out = model.generate(
            **batch, max_new_tokens=12, do_sample=False, logits_processor=processors
        )
        answers.append(out[:, batch.input_ids.shape[1] :].tolist())
        rows = processors[0].rows
        states.append(torch.stack([row.state.batch.states[row.state.index] for row in rows]).cpu())
        scores.append(torch.tensor(list(guidance.score(texts).values())))
    assert answers[0] == answers[1]
    torch.testing.assert_close(states[1], states[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-4, atol=1e-4)
    assert scores[0].std(1).min() > 0, "the probes must tell texts apart, or it proves nothing"
