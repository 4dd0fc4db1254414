"""Dual weights of floors and ceilings, against bisection, on random returns of several scorers."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.budget import Purse, forecast, spend
from trimtab.candidates import select
from trimtab.duals import Bounds, solve, solve_reference
from trimtab.outlook import Outlook
from trimtab.params import MAX_BETA
from trimtab.prospect import prospect

ROWS, BINS = 4, 6


def case(seed, scorers=3, rows=ROWS):
    """Candidates, outlooks of scorers that depend on each other, and whether tails stay."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, 20, generator=generator)
    k = torch.randint(2, 9, (rows,), generator=generator)
    candidates = select(logits, k, torch.full((rows,), 0.9), int(k.max()))
    candidates.logprobs = candidates.logprobs.double()
    row, place = candidates.real.nonzero().T
    common = 2 * torch.randn(len(row), BINS, generator=generator, dtype=torch.float64)
    outlooks = []
    for i in range(scorers):
        own = torch.randn(len(row), BINS, generator=generator, dtype=torch.float64)
        returns = torch.linspace(-1, 1 + i, BINS, dtype=torch.float64)
        weight = torch.randn(rows, generator=generator, dtype=torch.float64)
        log_p = (own + (-1) ** i * common).log_softmax(-1)
        outlooks.append(Outlook(log_p, returns, row, place, weight, utility=None))
    outlooks[0] = replace(outlooks[0], utility=-(outlooks[0].returns - 0.3).abs().expand(rows, -1))
    stays = torch.rand(rows, generator=generator) < 0.5
    return candidates, outlooks, stays


def bounds_of(seed, base, scorers=3):
    """Floors and ceilings around the means without them, [rows, scorers]; some are absent."""
    generator = torch.Generator().manual_seed(seed + 1)

    def some(far):
        return torch.rand(base.shape, generator=generator, dtype=torch.float64) * far

    low, high = base - 0.2 + some(0.5), base - 0.2 + some(0.5)
    low, high = torch.minimum(low, high), torch.maximum(low, high)
    low[some(1) < 0.4], high[some(1) < 0.4] = -math.inf, math.inf
    return Bounds(low, high)


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), beta=st.floats(-3, 3), scorers=st.integers(1, 3))
def test_the_duals_are_those_of_bisection(seed, beta, scorers):
    candidates, outlooks, stays = case(seed, scorers)
    betas = torch.full((ROWS,), beta, dtype=torch.float64)
    free = prospect(betas, zeros(ROWS, scorers), outlooks, candidates, stays)
    bounds = bounds_of(seed, free.mean)
    start = torch.randn(ROWS, scorers, dtype=torch.float64)
    duals = solve(betas, bounds, start, outlooks, candidates, stays)
    expected = solve_reference(betas, bounds, outlooks, candidates, stays)
    made = prospect(betas, duals, outlooks, candidates, stays)
    other = prospect(betas, expected, outlooks, candidates, stays)
    value, best = bounds.objective(duals, made.phi), bounds.objective(expected, other.phi)
    torch.testing.assert_close(value, best, rtol=1e-9, atol=1e-9)
    inside = (duals.abs() < MAX_BETA).all(-1) & (expected.abs() < MAX_BETA).all(-1)
    torch.testing.assert_close(made.mean[inside], other.mean[inside], rtol=1e-5, atol=1e-5)
    # The conditions of an optimum, each by itself.
    mean = made.mean[inside]
    low, high, d = bounds.low[inside], bounds.high[inside], duals[inside]
    assert (mean > low - 1e-6).all()
    assert (mean < high + 1e-6).all()
    assert ((d > 0) <= ((mean - low).abs() < 1e-6)).all()
    assert ((d < 0) <= ((mean - high).abs() < 1e-6)).all()


def test_rows_do_not_meet():
    candidates, outlooks, stays = case(5)
    betas = torch.tensor([0.5, 1.0, 2.0, -1.0], dtype=torch.float64)
    free = prospect(betas, zeros(ROWS, 3), outlooks, candidates, stays)
    bounds = bounds_of(5, free.mean)
    together = solve(betas, bounds, zeros(ROWS, 3), outlooks, candidates, stays)
    for r in range(ROWS):
        only = bounds.only(torch.arange(ROWS) == r)
        alone = solve(betas, only, zeros(ROWS, 3), outlooks, candidates, stays)
        torch.testing.assert_close(together[r], alone[r], rtol=1e-6, atol=1e-7)
        assert not alone[torch.arange(ROWS) != r].any()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), beta=st.floats(-3, 3))
def test_means_and_curvature_are_derivatives_of_phi(seed, beta):
    candidates, outlooks, stays = case(seed)
    betas = torch.full((ROWS,), beta, dtype=torch.float64)
    d = torch.randn(ROWS, 3, dtype=torch.float64)
    made, h = prospect(betas, d, outlooks, candidates, stays), 1e-5
    for i in range(3):
        step = zeros(ROWS, 3)
        step[:, i] = h
        up, down = (prospect(betas, d + s, outlooks, candidates, stays) for s in (step, -step))
        torch.testing.assert_close(
            (up.phi - down.phi) / (2 * h), made.mean[:, i], rtol=1e-6, atol=1e-7
        )
        slopes = (up.mean - down.mean) / (2 * h)
        torch.testing.assert_close(slopes, made.curvature[:, :, i], rtol=1e-5, atol=1e-6)


def purse(left, before=0.0):
    rows = len(left)
    return Purse(
        left, torch.full_like(left, before), *(zeros(rows) for _ in range(3)), zeros(rows) + 9
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), left=st.floats(0.01, 3))
def test_a_budget_pays_for_bounds_first_and_is_the_harder_limit(seed, left):
    candidates, outlooks, _ = case(seed)
    outlooks = [replace(one, weight=one.weight.abs()) for one in outlooks]
    stays, nats = torch.ones(ROWS, dtype=torch.bool), torch.full((ROWS,), left).double()
    free = prospect(zeros(ROWS), zeros(ROWS, 3), outlooks, candidates, stays)
    bounds = bounds_of(seed, free.mean)
    own = purse(nats)
    beta, duals, _ = spend(own, outlooks, candidates, stays, bounds, zeros(ROWS, 3))
    at_zero = solve(zeros(ROWS), bounds, zeros(ROWS, 3), outlooks, candidates, stays)
    least = forecast(zeros(ROWS), own, outlooks, candidates, stays, at_zero).cost
    made = prospect(beta, duals, outlooks, candidates, stays)
    cost = forecast(beta, own, outlooks, candidates, stays, duals).cost
    bounded = (bounds.most > 0).any(-1) | (bounds.least < 0).any(-1)
    for r in range(ROWS):
        if beta[r] < MAX_BETA - 1e-6 and (duals[r].abs() < MAX_BETA - 1e-6).all():
            assert float(cost[r]) == pytest.approx(left, abs=1e-5)
        if bounded[r] and least[r] > left:  # floors as far as the budget allows
            assert beta[r] == 0
            share = duals[r].abs().sum() / at_zero[r].abs().sum()
            assert 0 <= share < 1
            torch.testing.assert_close(duals[r], share * at_zero[r], rtol=1e-5, atol=1e-7)
        elif beta[r] < MAX_BETA:
            kept = solve(beta, bounds, zeros(ROWS, 3), outlooks, candidates, stays)
            torch.testing.assert_close(duals[r], kept[r], rtol=1e-4, atol=1e-5)
    assert made.step.isfinite().all()


def test_a_bound_out_of_reach_gets_the_maximum():
    candidates, outlooks, stays = case(3)
    low, high = torch.full((ROWS, 3), -math.inf).double(), torch.full((ROWS, 3), math.inf).double()
    low[:, 0], high[:, 1] = 5.0, -5.0
    bounds = Bounds(low, high)
    duals = solve(zeros(ROWS), bounds, zeros(ROWS, 3), outlooks, candidates, stays)
    assert duals[:, 0].tolist() == [MAX_BETA] * ROWS
    assert duals[:, 1].tolist() == [-MAX_BETA] * ROWS
    assert duals[:, 2].tolist() == [0] * ROWS
