"""Texts of Model Runner V2's requests: extended step by step, they equal whole copies."""

import numpy as np
import pytest
import torch

import pretended
from trimtab.adapters.vllm import prefixes
from trimtab.adapters.vllm.prefixes import Request, whole
from trimtab.scoring.pool import NO_IDS
from trimtab_models.transfers import to_host, upload

SLOTS, LENGTH = 6, 64


def extended(tokens, requests, most):
    """The texts of requests (slot, length, known text), as the processor reads them."""
    ends = torch.tensor([[slot, length] for slot, length, _ in requests])
    slots, lengths = upload(ends, tokens.device).T
    [recent] = to_host([prefixes.recent(tokens, slots, lengths, most)])
    rows = zip(requests, recent.numpy().astype(np.int64), strict=True)
    return [
        prefixes.text(tokens, Request(0, slot, length, last), known)
        for (slot, length, known), last in rows
    ]


@pytest.mark.parametrize("most", [1, 4])
def test_texts_equal_whole_copies(most):
    """Requests come, grow by up to `most` tokens a step, rest, end, and leave their slot."""
    rng = np.random.default_rng(most)
    tokens = torch.from_numpy(rng.integers(50, size=(SLOTS, LENGTH)).astype(np.int32))
    lengths, known, compared = {}, {}, 0
    for _ in range(200):
        for slot in range(SLOTS):
            if slot not in lengths or lengths[slot] + most >= LENGTH or rng.random() < 0.05:
                lengths[slot], known[slot] = int(rng.integers(1, 20)), NO_IDS
                tokens[slot] = torch.from_numpy(rng.integers(50, size=LENGTH))
            else:
                lengths[slot] += int(rng.integers(0, most + 1))
        slots = rng.permutation(SLOTS)[: rng.integers(1, SLOTS + 1)].tolist()
        texts = extended(tokens, [(s, lengths[s], known[s]) for s in slots], most)
        for slot, text in zip(slots, texts, strict=True):
            assert text.dtype == np.int64
            assert np.array_equal(text, whole(tokens, slot, lengths[slot]))
            compared += len(known[slot]) > 0
            known[slot] = text
    assert compared > 300


@pytest.mark.parametrize("stale", ["other", "longer", "older"])
def test_a_text_that_does_not_continue_is_copied_whole(stale):
    tokens = torch.arange(SLOTS * LENGTH).view(SLOTS, LENGTH)
    text = tokens[2, :20].numpy()
    known = {"other": text[:19] + 1, "longer": tokens[2, :25].numpy(), "older": text[:12]}
    [result] = extended(tokens, [(2, 20, known[stale])], 1)
    assert np.array_equal(result, text)


@pytest.mark.parametrize("count", [1, 5])
def test_one_wait_extends_all_texts(count, monkeypatch):
    tokens = torch.arange(SLOTS * LENGTH).view(SLOTS, LENGTH)
    requests = [(slot, 20, tokens[slot, :19].numpy()) for slot in range(count)]
    with pretended.pretended(monkeypatch) as device:
        texts = extended(pretended.there(tokens), requests, 1)
        assert device.waits == ["copy to the host"]
        device.waits.clear()
        new = [(slot, 20, NO_IDS) for slot in range(count)]  # the control
        assert len(extended(pretended.there(tokens), new, 1)) == count
        assert len(device.waits) == 1 + count
    assert [text.tolist() for text in texts] == tokens[:count, :20].tolist()
