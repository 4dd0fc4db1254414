"""The rows of Model Runner V2's logits with draft tokens: each is its own request's; no engine."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers import FunctionScorer
from trimtab.xargs import to_xargs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's import warns of its own code
    pytest.importorskip("vllm")
    from vllm import SamplingParams
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext

    from trimtab.adapters.vllm import GuidanceProcessor
    from trimtab.adapters.vllm.shadows import Seeds, Shadows

VOCAB, DRAFTS, SLOTS, LENGTH = 16, 3, 5, 12
PREFILL = {4: 3, 1: 2, 2: 6}
COMMITTED = {4: [3, 1, 4, 1, 5], 1: [2, 7], 2: [9, 9, 9, 9]}
DRAFTED = {4: [9, 2, 6], 1: [1, 8, 2], 2: []}
"""Slot 2 still loads its prompt; slot 0 has ended, but its tokens are still there."""
GUIDED = {4: 2.0, 1: -3.0}


def sine(ids):
    return math.sin(sum((i + 1) * token for i, token in enumerate(ids)))


def processor():
    """A processor of V2 with request states as vLLM's, but no engine."""
    tokens = torch.full((SLOTS, LENGTH), 15, dtype=torch.int32)
    for slot, ids in COMMITTED.items():
        tokens[slot, : len(ids)] = torch.tensor(ids)
    lengths = np.zeros(SLOTS, dtype=np.int32)
    for slot, length in PREFILL.items():
        lengths[slot] = length
    states = SimpleNamespace(
        device=torch.device("cpu"),
        all_token_ids=SimpleNamespace(gpu=tokens),
        prompt_len=SimpleNamespace(np=lengths),
        prefill_len=SimpleNamespace(np=lengths),
    )
    made = object.__new__(GuidanceProcessor)
    made.states, made.drafts, made.leads = states, DRAFTS, True
    made.guide = Guide({"sine": FunctionScorer(sine)})
    made.rows, made.prompts, made.outputs = {}, {}, {}
    made.shadows, made.seeds, made.answers = Shadows(), Seeds(), {}
    made.default_scorers, made.hidden, made.runner = {}, None, None
    for slot, beta in GUIDED.items():
        guidance = GuidanceParams(scorers={"sine": 1.0}, beta=beta)
        made.add_request(slot, SamplingParams(extra_args=to_xargs(guidance)))
    return made


def context(slots, placeholders=False):
    """The layout of a step of some slots, in a batch order of vLLM's."""
    rows = [
        (slot, i, len(COMMITTED[slot]) - 1 + i, token)
        for slot in slots
        for i, token in enumerate([COMMITTED[slot][-1], *DRAFTED[slot]])
    ]
    expanded, local, positions, tokens = map(torch.tensor, zip(*rows, strict=True))
    if placeholders:
        tokens[local > 0] = -1
    return LogitsContext(
        expanded_idx_mapping=expanded,
        idx_mapping=torch.tensor(slots),
        idx_mapping_np=np.array(slots),
        expanded_local_pos=local.int(),
        input_ids=tokens.int(),
        pos=positions,
        # With asynchronous scheduling the host knows no more than a bound.
        seq_lens_upper_bound_np=np.array([len(COMMITTED[s]) + 2 * DRAFTS for s in slots]),
    )


def alone(logits, prefix, prompt_length, beta):
    """One row, guided by itself."""
    guidance = GuidanceParams(scorers={"sine": 1.0}, beta=beta)
    result = logits[None].clone()
    row = Row(guidance, prompt_length, prefix=np.array(prefix))
    Guide({"sine": FunctionScorer(sine)}).step(result, [(0, row)])
    return result[0]


@pytest.mark.parametrize("order", [(4, 1), (1, 4), (4, 2, 1), (1, 2, 4)])
def test_no_row_is_edited_for_another_request(order):
    ctx = context(list(order))
    before = torch.randn(len(ctx.pos), VOCAB)
    after = processor().apply(before.clone(), ctx)
    compared = 0
    for b, slot in enumerate(ctx.expanded_idx_mapping.tolist()):
        offset = int(ctx.expanded_local_pos[b])
        if slot not in GUIDED:
            assert torch.equal(after[b], before[b])
            continue
        prefix = COMMITTED[slot] + DRAFTED[slot][:offset]
        expected = alone(before[b], prefix, PREFILL[slot], GUIDED[slot])
        torch.testing.assert_close(after[b], expected)
        assert not torch.equal(after[b], before[b])
        compared += 1
    assert compared == 2 * (1 + DRAFTS)


def test_only_the_request_that_is_guided_is_edited():
    made, ctx = processor(), context([4, 1])
    del made.rows[1]
    before = torch.randn(2 * (1 + DRAFTS), VOCAB)
    after = made.apply(before.clone(), ctx)
    assert torch.equal(after[1 + DRAFTS :], before[1 + DRAFTS :])
    assert not (after[: 1 + DRAFTS] == before[: 1 + DRAFTS]).all(-1).any()


def test_placeholders_are_not_scored():
    ctx = context([4, 1], placeholders=True)
    before = torch.randn(2 * (1 + DRAFTS), VOCAB)
    made = processor()
    after = made.apply(before.clone(), ctx)
    edited = (after != before).any(-1).nonzero()[:, 0].tolist()
    assert edited == [0, 1 + DRAFTS]
    assert all(row.fault is None for row in made.rows.values())


def test_the_control():
    """Rows by batch position, as without draft tokens: row 1 belongs to the first request."""
    made, ctx = processor(), context([4, 1])
    made.drafts = 0
    before = torch.randn(2 * (1 + DRAFTS), VOCAB)
    after = made.apply(before.clone(), ctx)
    assert (after != before).any(-1).nonzero()[:, 0].tolist() == [0, 1]
    assert ctx.expanded_idx_mapping[1] == 4


def test_an_unknown_scorer_takes_guidance_from_its_own_row_alone():
    """Only a stock front end passes it on; the ranks still agree on the row's k."""
    made, ctx = processor(), context([4, 1])
    made.hidden = SimpleNamespace(of=lambda rows: torch.zeros(rows, 4))
    unknown = GuidanceParams(scorers={"unknown": 1.0}, k=5, on_error="unguided")
    made.add_request(1, SamplingParams(extra_args=to_xargs(unknown)))
    assert made.rows[1].params == GuidanceParams(k=5)
    before = torch.randn(2 * (1 + DRAFTS), VOCAB)
    after = made.apply(before.clone(), ctx)
    assert [row.fault is not None for row in made.rows.values()] == [False, True]
    expected = alone(before[0], COMMITTED[4], PREFILL[4], GUIDED[4])
    torch.testing.assert_close(after[0], expected)
