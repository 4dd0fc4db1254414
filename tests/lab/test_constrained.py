"""Floors, ceilings and utilities of the guided policy, beside the exact constrained optimum."""

import math

import pytest
import torch

from trimtab.params import GuidanceParams
from trimtab_lab.arena.constrained import (
    ExactReturns,
    by_prompt,
    constrained,
    divergence,
    guided,
)
from trimtab_lab.worlds.tiny import PROMPTS, Tiny
from trimtab_models.checkpoint import ScorerInfo

INF = math.inf


@pytest.fixture(scope="module")
def tiny():
    return Tiny(0)


def twos(tiny):
    """How often the completion has token 2, less a share of the world's reward: they conflict."""
    counts = [float(sum(token == 2 for token in y)) for _, y in tiny.finals]
    return torch.tensor(counts, dtype=torch.float64)


def lengths(tiny):
    return torch.tensor([float(len(y)) for _, y in tiny.finals], dtype=torch.float64)


def run(tiny, **fields):
    served = {
        "r": ExactReturns(tiny, tiny.rewards),
        "twos": ExactReturns(tiny, twos(tiny)),
        "length": ExactReturns(tiny, lengths(tiny)),
    }
    fields = {"k": 4, "mass": 1.0, "scorers": {}} | fields
    if not fields["scorers"]:
        del fields["scorers"]
    return guided(tiny, served, GuidanceParams.parse(fields))


def optimum(tiny, objective, bounds):
    """bounds: (returns, floor, ceiling) of each scorer."""
    returns = torch.stack([values for values, _, _ in bounds])
    low = torch.tensor([floor for _, floor, _ in bounds], dtype=torch.float64)
    high = torch.tensor([ceiling for _, _, ceiling in bounds], dtype=torch.float64)
    return constrained(tiny, objective, returns, low, high)


def test_the_exact_optimum_is_one(tiny):
    """No mixture with another policy that keeps the bound is better."""
    objective = 2 * twos(tiny)
    p, duals = optimum(tiny, objective, [(tiny.rewards, 0.3, INF)])
    mean = by_prompt(p, tiny.rewards)
    assert (mean > 0.3 - 1e-9).all()
    assert ((duals[:, 0] > 0) <= ((mean - 0.3).abs() < 1e-9)).all()
    value = by_prompt(p, objective) - divergence(tiny, p)
    more, _ = optimum(tiny, 3 * twos(tiny), [(tiny.rewards, 0.4, INF)])
    for share in (0.01, 0.1):
        mixed = (1 - share) * p + share * more
        assert (by_prompt(mixed, objective) - divergence(tiny, mixed) < value).all()


@pytest.mark.parametrize(
    "utility", [{"target": 2.0}, {"at_least": 3.0}, {"at_most": 2.0}, {"cvar": 0.2}], ids=str
)
def test_one_utility_is_the_exact_optimum(tiny, utility):
    """With exact returns, π0·exp(β·u(R))/Z, token by token."""
    values, beta = lengths(tiny), 2.0
    result = run(tiny, scorers={"length": 1.0}, beta=beta, utility={"length": utility})
    [(kind, x)] = utility.items()
    for i, prompt in enumerate(PROMPTS):
        eta = result.rows[prompt, ()].plan.eta.get("length", 0.0)
        u = {
            "target": -(values - x).abs(),
            "at_least": (values >= x).double(),
            "at_most": (values <= x).double(),
            "cvar": eta - (eta - values).clamp(min=0) / x,
        }[kind]
        weights = (tiny.probabilities.log() + beta * u).view(len(PROMPTS), -1)[i]
        own = result.p.view(len(PROMPTS), -1)[i]
        assert float((own - weights.softmax(-1)).abs().sum()) / 2 < 1e-4


def test_a_low_cvar_improves_most_by_cvar(tiny):
    """Against the mean at the same KL or less."""

    def worst(p, share=0.2):
        """CVaR of each prompt."""
        means = []
        for q, r in zip(p.view(2, -1), tiny.rewards.view(2, -1), strict=True):
            order = r.argsort()
            taken = q[order].cumsum(0).clamp(max=share)
            means.append(float((taken.diff(prepend=torch.zeros(1).double()) * r[order]).sum()))
        return torch.tensor(means) / share

    one = run(tiny, scorers={"r": 1.0}, beta=0.3, utility={"r": {"cvar": 0.2}})
    kl = divergence(tiny, one.p)
    for i in range(len(PROMPTS)):
        base = tiny.probabilities.log() + 0.0
        beta = 0.0
        while True:  # the mean's policy that costs as much
            beta += 0.01
            p = (base + beta * tiny.rewards).view(2, -1).softmax(-1).flatten()
            if float(divergence(tiny, p)[i]) >= float(kl[i]):
                break
        assert float(worst(one.p)[i]) > float(worst(p)[i])


@pytest.mark.parametrize("floor", [0.2, 0.5])
def test_one_floor_is_the_exact_optimum(tiny, floor):
    result = run(tiny, floors={"r": floor})
    best, duals = optimum(tiny, 0 * tiny.rewards, [(tiny.rewards, floor, INF)])
    assert float((result.p - best).abs().sum()) / 2 < 2e-3
    for i, prompt in enumerate(PROMPTS):
        dual = result.rows[prompt, ()].plan.duals["r"]
        assert dual == pytest.approx(float(duals[i, 0]), rel=1e-3, abs=1e-3)


CASES = {
    "floor beside a rival": {"floors": {"r": 0.4}, "scorers": {"twos": 1.0}},
    "ceiling on what steers": {"ceilings": {"twos": 1.0}, "scorers": {"twos": 1.0}},
    "floor and ceiling": {
        "floors": {"r": 0.3},
        "ceilings": {"length": 2.5},
        "scorers": {"twos": 1.0},
    },
}


@pytest.mark.parametrize(
    ("name", "beta", "miss", "lost"),
    [
        ("floor beside a rival", 1.0, 0.01, 0.3),
        ("floor beside a rival", 3.0, 0.02, 2.0),
        ("ceiling on what steers", 3.0, 0.01, 0.02),
        ("floor and ceiling", 1.0, 0.04, 0.3),
        ("floor and ceiling", 3.0, 0.16, 2.5),
    ],
)
def test_bounds_hold_beside_other_scorers(tiny, name, beta, miss, lost):
    """Scorers depend on each other, which the guide does not know. In four tokens it cannot make
    everything good: at the end, `miss` of the return's range and `lost` nats of the optimum's value
    may be missing; benchmarks/results/constraints.md has the means."""
    fields = CASES[name]
    result = run(tiny, beta=beta, **fields)
    values = {"r": tiny.rewards, "twos": twos(tiny), "length": lengths(tiny)}
    floors, ceilings = fields.get("floors", {}), fields.get("ceilings", {})
    bounds = [
        (values[one], floors.get(one, -INF), ceilings.get(one, INF))
        for one in {**floors, **ceilings}
    ]
    objective = beta * values["twos"]
    best, duals = optimum(tiny, objective, bounds)
    for i, (returns, floor, ceiling) in enumerate(bounds):
        mean = by_prompt(result.p, returns)
        scale = float(returns.max() - returns.min())
        assert (mean > floor - miss * scale).all()
        assert (mean < ceiling + miss * scale).all()
        active = duals[:, i] != 0
        bound = torch.where(duals[:, i] > 0, floor, ceiling)
        assert ((mean - bound).abs()[active] < miss * scale).all()
    value = by_prompt(result.p, objective) - divergence(tiny, result.p)
    highest = by_prompt(best, objective) - divergence(tiny, best)
    assert (value > highest - lost).all()


class Doubtful(ExactReturns):
    """The same, with a coin of ±e added to the return that nobody can know before its end."""

    def __init__(self, tiny, rewards, e, known):
        super().__init__(tiny, rewards)
        self.info = ScorerInfo(known_at_end=known)
        self.returns = torch.cat((self.returns - e, self.returns + e))
        self.logits = {prefix: torch.cat((own, own)) for prefix, own in self.logits.items()}


def test_what_is_never_known_is_not_taken_for_steering(tiny):
    """Of the first prompt, for which the share is right."""
    e, floor = 0.5, 0.7
    rewards, p = tiny.returns(PROMPTS[0], ())
    variance = float(p @ rewards.square() - (p @ rewards).square())
    params = GuidanceParams.parse({"k": 4, "mass": 1.0, "floors": {"r": floor}})

    def mean(known):
        made = guided(tiny, {"r": Doubtful(tiny, tiny.rewards, e, known)}, params)
        return float(by_prompt(made.p, tiny.rewards)[0])

    assert float(p @ rewards) < floor - 0.2
    assert mean(variance / (variance + e**2)) == pytest.approx(floor, abs=0.03)
    assert mean(None) < floor - 0.06  # the control


def test_floors_in_a_budget(tiny):
    """As far as the budget allows: the floor where it is cheap, the budget where it is dear."""
    cheap = run(tiny, floors={"r": 0.3}, scorers={"twos": 1.0}, kl_budget=1.0)
    assert (by_prompt(cheap.p, tiny.rewards) > 0.3 - 0.02).all()
    spent = by_prompt(cheap.p, cheap.kl)
    assert spent.tolist() == pytest.approx([1.0] * 2, rel=0.15)
    free = run(tiny, floors={"r": 0.8})
    dear = run(tiny, floors={"r": 0.8}, kl_budget=0.2)
    assert (divergence(tiny, free.p) > 0.3).all()
    assert by_prompt(dear.p, dear.kl).tolist() == pytest.approx([0.2] * 2, rel=0.1)
    base = by_prompt(tiny.probabilities, tiny.rewards)
    assert (by_prompt(dear.p, tiny.rewards) > base + 0.05).all()
