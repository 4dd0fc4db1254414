"""Parameters of rows in their slots equal those made anew at each step."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

import pretended
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.slots import Slots, reference, values_of

NAMES = "abcde"


def fixed(row):
    """Factors and means of a row's scorers, as a guide tells them."""
    mean = row.max_tokens if row.params.normalize else 0.0
    return {
        name: (row.params.beta * weight, mean)
        for name, weight in row.weights.items()
        if not row.params.planned
    }


def some_row(rng):
    names = rng.permutation(list(NAMES))[: rng.integers(1, 4)]
    fields = {
        "scorers": {name: float(w) for name, w in zip(names, rng.normal(size=3), strict=False)},
        "k": int(rng.integers(1, 257)),
        "mass": float(rng.uniform(0.01, 1)),
        "tail": str(rng.choice(["mean", "truncate"])),
        "normalize": bool(rng.random() < 0.3),
        "on_error": str(rng.choice(["fail", "unguided"])),
    }
    kind = rng.integers(5)
    if kind == 0:
        fields["kl_budget"] = 2.0
    elif kind == 1:
        fields["floors"] = {str(names[0]): 0.5}
    elif kind == 2:
        fields |= {"k": "all", "beta": 3.0}
    elif kind == 3:
        fields["utility"] = {str(names[0]): {"target": 1.0}}
    stop = None if rng.random() < 0.3 else int(rng.integers(2**24))
    return Row(GuidanceParams.parse(fields), 1, stop, max_tokens=int(rng.integers(9)))


def equal(held, expected):
    names = expected._columns
    for part in ("place", "k", "mass", "tail_mean", "stop", "ends"):
        assert torch.equal(getattr(held, part), getattr(expected, part)), part
    for name in names:
        assert torch.equal(held.uses(name), expected.uses(name))
    for group in (list(names), list(names)[:1]) if names else ():
        for own, other in zip(held.scales(group), expected.scales(group), strict=True):
            assert torch.equal(own, other)


def life(steps, rng):
    """Steps of rows that enter, leave, rest, move, change, and are followed by draft tokens."""
    rows = []
    for _ in range(steps):
        rows = [row for row in rows if rng.random() > 0.2]
        rows += [some_row(rng) for _ in range(rng.integers(0, 12))]
        for row in rows:
            if rng.random() < 0.1:
                row.params = some_row(rng).params
            if rng.random() < 0.1:
                row.max_tokens = int(rng.integers(9))  # a scorer of another mean
        batch = [rows[i] for i in rng.permutation(len(rows)) if rng.random() < 0.8]
        batch = [one for row in batch for one in (row, *[replace(row)] * rng.integers(3))]
        if batch:
            yield rng.permutation(len(batch) + 3)[: len(batch)].tolist(), batch


def compare(slots, rng):
    """How many rows were compared."""
    compared = 0
    for index, batch in life(60, rng):
        for _ in range(2):  # the second time from the first
            equal(slots.of(index, batch, fixed), reference(index, batch, fixed))
        compared += len(batch)
    return compared


@pytest.mark.parametrize("repeat", range(3))
def test_slots_equal_parameters(repeat):
    slots = Slots(torch.device("cpu"))
    assert compare(slots, np.random.default_rng(np.random.SeedSequence().entropy)) > 500
    gc.collect()
    assert slots._table.shape[1] <= 256  # slots of rows that have left are used again
    assert len(slots._free) == slots._table.shape[1]


@pytest.mark.parametrize("careless", ["writes once", "shares"])
def test_the_control(careless, monkeypatch):
    """A row whose parameters change, or two rows in one slot."""
    slots = Slots(torch.device("cpu"))
    if careless == "writes once":
        monkeypatch.setattr(Slots, "_known", lambda self, row, fixed: row.slot is not None)
    else:
        monkeypatch.setattr("trimtab.slots.finalize", lambda slot, put, index: put(index) or slot)
    with pytest.raises(AssertionError):
        compare(slots, np.random.default_rng(0))


def test_a_step_uploads_places_and_slots_where_they_change(monkeypatch):
    rng = np.random.default_rng(1)
    rows = [some_row(rng) for _ in range(5)]
    with pretended.pretended(monkeypatch) as device:
        slots = Slots(pretended.CUDA)
        uploads = []
        for index, batch in (
            ([0, 1, 2], rows[:3]),  # three enter
            ([0, 1, 2], rows[:3]),
            ([2, 0, 1], rows[:3]),  # they move
            ([0, 1, 2, 3], rows[1:]),  # one leaves, two enter
            ([0, 1, 2, 3], rows[1:]),
        ):
            device.uploads.clear()
            slots.of(index, batch, fixed)
            uploads.append(list(device.uploads))
        columns = len(values_of(rows[0], fixed, slots._columns))
        assert device.waits == []
    assert [len(shapes) for shapes in uploads] == [3, 0, 1, 3, 0]
    assert uploads[2] == [(2, 3)]
    assert uploads[3] == [(2,), (columns, 2), (2, 4)]
