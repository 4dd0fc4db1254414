"""How often a step of Model Runner V2 waits for the device: at most twice, and no row uploads more.

vLLM's processor runs without an engine, on a pretended device (pretended.py), over request states
as vLLM's. Logits and records are compared with those of a processor on the CPU.
"""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pretended
from networks import VOCAB
from test_waits import FAMILIES, HIDDEN, UPLOADS
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.scoring import attention, merging
from trimtab.xargs import RECORD_KEY, to_xargs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's import warns of its own code
    pytest.importorskip("vllm")
    from vllm import SamplingParams
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext

    from trimtab.adapters.vllm import GuidanceProcessor, prefixes
    from trimtab.adapters.vllm.shadows import Seeds, Shadows

SLOTS, LENGTH, STEPS = 7, 40, 4
PROMPTS = {4: 9, 1: 8, 6: 10, 2: 12, 0: 8}
"""Slot → tokens of the prompt; the request in slot 0 is not guided."""
OWN = {
    4: {"tail": "truncate", "mass": 0.8, "trace": True},
    1: {"k": 3, "mass": 1.0, "normalize": True},
    6: {"beta": 2.0},
    2: {"beta": -1.0, "on_error": "unguided"},
}
CVAR = {"scorers": {"probe1": 1.0, "probe2": 1.0}, "utility": {"probe2": {"cvar": 0.2}}}


def processor(scorers, fields, drafts, there):
    """A processor over request states; there: what puts a tensor on the device."""
    rng = np.random.default_rng(0)
    lengths = np.zeros(SLOTS, dtype=np.int32)
    for slot, length in PROMPTS.items():
        lengths[slot] = length
    made = object.__new__(GuidanceProcessor)
    made.states = SimpleNamespace(
        all_token_ids=SimpleNamespace(
            gpu=there(torch.from_numpy(rng.integers(VOCAB, size=(SLOTS, LENGTH)).astype(np.int32)))
        ),
        prompt_len=SimpleNamespace(np=lengths),
        prefill_len=SimpleNamespace(np=lengths),
    )
    made.drafts, made.leads, made.guide = drafts, True, Guide(scorers)
    made.guide.late = True
    made.guide.states.former = 1 + 2 * drafts
    made.rows, made.prompts, made.outputs = {}, {}, {}
    made.shadows, made.seeds, made.answers = Shadows(), Seeds(), {}
    made.default_scorers, made.hidden, made.runner = {}, None, None
    same = fields.keys() & {"k", "kl_budget"}
    for slot, own in OWN.items():
        guidance = GuidanceParams.parse(fields if same else {**own, **fields})
        extra = {**to_xargs(guidance), RECORD_KEY: str(slot)}
        made.add_request(slot, SamplingParams(extra_args=extra, max_tokens=9))
    return made


def context(step, drafts, there):
    """The layout of a step: every request has grown by a token; its draft tokens follow."""
    order = np.roll(list(PROMPTS), step // 2)  # the batch order changes at times
    rows = [
        (slot, i, PROMPTS[slot] + step - 1 + i, (slot + step + i) % VOCAB)
        for slot in order.tolist()
        for i in range(1 + drafts)
    ]
    slots, local, positions, tokens = map(torch.tensor, zip(*rows, strict=True))
    return LogitsContext(
        expanded_idx_mapping=there(slots.int()),
        idx_mapping=there(torch.from_numpy(order).int()),
        idx_mapping_np=order,
        expanded_local_pos=there(local.int()),
        input_ids=there(tokens.int()),
        pos=there(positions),
        seq_lens_upper_bound_np=np.array([PROMPTS[slot] + step for slot in order.tolist()]),
    )


def steps(made, drafts, there, device=None):
    """The logits of all steps, the records, and the waits and uploads of the last two steps."""
    generator = torch.Generator().manual_seed(1)
    rows, out, waits, uploads = len(PROMPTS) * (1 + drafts), [], [], []
    tokens = [row.cpu().numpy() for row in made.states.all_token_ids.gpu]
    for step in range(STEPS):
        logits = there(torch.randn(rows, VOCAB, generator=generator) * 2)
        hidden = there(torch.randn(rows, HIDDEN, generator=generator))
        made.hidden = SimpleNamespace(of=lambda _, hidden=hidden: hidden)
        ctx = context(step, drafts, there)
        if device is not None:
            device.waits.clear(), device.uploads.clear()
        made.apply(logits, ctx)
        if device is not None:
            waits.append(list(device.waits))
            uploads.append(len(device.uploads))
        out.append(logits)
    records = [
        made.guide.records.report(
            str(slot), tokens[slot][:length], [tokens[slot][length : length + STEPS]], True, False
        )[0]
        for slot, length in PROMPTS.items()
        if slot in OWN
    ]
    assert [record["error"] for record in records] == [None] * len(OWN)
    assert all(record["steps"] == STEPS for record in records)
    return torch.stack([logits.cpu() for logits in out]), records, waits, uploads


def scorers(names, moved):
    made = {}
    for name in names:
        made |= FAMILIES[name](moved)
    return made


def run(families, fields, drafts, monkeypatch):
    """The waits and uploads of each step, whose numbers equal a step's on the CPU."""
    with torch.inference_mode():
        plain = processor(scorers(families, False), fields, drafts, lambda tensor: tensor)
        expected, records, _, _ = steps(plain, drafts, lambda tensor: tensor)
        for module in (merging, attention):  # a kernel of CUDA's
            monkeypatch.setattr(module, "attend", merging.by_formula)
        with pretended.pretended(monkeypatch) as device:
            there = pretended.there
            made = processor(scorers(families, True), fields, drafts, there)
            actual, own, waits, uploads = steps(made, drafts, there, device)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    for record, other in zip(own, records, strict=True):
        assert record["kl"] == pytest.approx(other["kl"], rel=1e-4, abs=1e-5)
        assert record["scored_tokens"] == other["scored_tokens"]
        assert len(record.get("trace", ())) == len(other.get("trace", ()))
    return waits, uploads


@pytest.mark.parametrize("families", [["head"], ["probes"], ["head", "probe", "ahead", "function"]])
def test_a_step_waits_once(families, monkeypatch):
    """For the last tokens and the candidates, in one copy.

    Its rows upload their places and lengths, and their slots where the batch changes.
    """
    waits, uploads = run(families, {}, 0, monkeypatch)
    assert waits[1:] == [["copy to the host"]] * (STEPS - 1)
    own = sum(UPLOADS[family] for family in families)
    probing = any("probe" in family for family in families)  # whose states have places as well
    assert uploads[1:] == [1 + own, 2 + probing + own, 1 + own]


def test_one_more_wait_is_counted(monkeypatch):
    """The control: tokens that are read before the candidates."""
    plain = prefixes.recent

    def recent(*args):
        last = plain(*args)
        last.cpu()
        return last

    monkeypatch.setattr(prefixes, "recent", recent)
    waits, _ = run(["probe"], {}, 0, monkeypatch)
    assert waits[1:] == [["copy to the host"] * 2] * (STEPS - 1)


@pytest.mark.parametrize(
    ("fields", "drafts", "count"),
    [
        ({"k": "all"}, 0, 1),
        ({"kl_budget": 0.05}, 0, 2),
        ({"floors": {"probe1": 0.1, "probe2": 0.2}}, 0, 2),
        ({"ceilings": {"probe1": 0.1}, **CVAR}, 0, 2),
        ({}, 2, 2),
    ],
)
def test_a_step_waits_at_most_twice(fields, drafts, count, monkeypatch):
    """Strengths are planned on the host; draft tokens tell which rows there are."""
    waits, _ = run(["probes"], fields, drafts, monkeypatch)
    assert waits[1:] == [["copy to the host"] * count] * (STEPS - 1)
