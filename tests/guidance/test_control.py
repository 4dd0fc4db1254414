"""KL budgets and floors, on the tiny world's exact return distributions and against scipy."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from scipy.optimize import brentq

from trimtab import budget as budgets
from trimtab.budget import Purse, forecast, spend
from trimtab.candidates import select
from trimtab.duals import Bounds, solve
from trimtab.errors import InvalidGuidance, UnknownScorer
from trimtab.guide import Guide
from trimtab.outlook import Outlook, root, root_reference
from trimtab.params import MAX_BETA, GuidanceParams
from trimtab.rows import Row
from trimtab.scorers import FunctionScorer
from trimtab.scorers.base import Scorer
from trimtab.xargs import from_xargs, to_xargs
from trimtab_lab.arena.exact import mean_reward, optimum
from trimtab_lab.worlds.tiny import PROMPTS, Tiny, ended
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.readout import soft_value


class Histograms(Scorer):
    """The tiny world's exact return distributions; with `noise`, wrong ones that disagree."""

    family = "distribution"
    distributional = True

    def __init__(self, tiny, noise=0.0, sign=1.0, broken=False):
        super().__init__(ScorerInfo(deviation=0.5))
        values = (sign * tiny.rewards).unique()
        self.returns = values.float()
        self.broken = broken
        generator = torch.Generator().manual_seed(1)
        self.logits = {}
        for x, y in tiny.states:
            rewards, weights = tiny.returns(x, y)
            p = torch.zeros(len(values), dtype=torch.float64)
            p.index_add_(0, torch.searchsorted(values, sign * rewards), weights)
            if noise:  # never sure of anything
                p = 0.9 * p + 0.1 / len(p)
            wrong = noise * torch.randn(len(values), generator=generator)
            self.logits[(*x, *y)] = (p.clamp(min=1e-30).log() + wrong).float()

    def histograms(self, keys, prefixes, candidates, prompts=()):
        if self.broken:
            raise RuntimeError("secret")
        rows = zip(prefixes, candidates, strict=True)
        return torch.stack([self.logits[(*p.tolist(), v)] for p, group in rows for v in group])

    def score(self, keys, prefixes, candidates, strengths, prompts=()):
        sizes = torch.tensor([len(group) for group in candidates])
        c = torch.tensor(strengths).repeat_interleave(sizes)
        return soft_value(self.histograms(keys, prefixes, candidates), self.returns, c)


@dataclass
class Decoded:
    p: torch.Tensor  # [finals]
    spent: torch.Tensor  # [finals] Σ of the steps' KLs
    left: torch.Tensor  # [finals] nats that the last plan leaves
    rows: dict  # (prompt, prefix) → its row, after its step


def decode(tiny, served, **fields):
    """Every prefix with the history that leads to it, through the real guide."""
    fields = {"k": 4, "mass": 1.0} | fields
    guide = Guide(served)
    params = GuidanceParams.parse(fields).resolve(served)
    logits = dict(zip(tiny.states, tiny.at(tiny.log_pi0).float(), strict=True))
    rows, policy = {}, {}
    for depth in range(max(len(y) for _, y in tiny.finals)):
        states = [s for s in tiny.states if len(s[1]) == depth and not ended(s[1])]
        for x, y in states:
            parent = rows.get((x, y[:-1])) if y else None
            steps = dict(parent.steps) if parent else {}
            rows[x, y] = Row(params, len(x), prefix=np.array([*x, *y]), steps=steps)
            rows[x, y].record_key = "kept"
        fused = torch.stack([logits[s] for s in states])
        guide.step(fused, [(i, rows[s]) for i, s in enumerate(states)])
        policy |= zip(states, fused.double().log_softmax(-1), strict=True)
    p, spent, left = [], [], []
    for x, y in tiny.finals:
        p.append(sum(policy[x, y[:t]][v] for t, v in enumerate(y)).exp())
        steps = rows[x, y[:-1]].steps
        spent.append(sum(step.kl for step in steps.values()))
        plan = steps[len(x) + len(y) - 1].plan
        left.append(plan.after.get(y[-1], 0.0) if plan else 0.0)
    return Decoded(torch.stack(p), *torch.tensor([spent, left], dtype=torch.float64), rows)


def by_prompt(p, values):
    return (p * values).view(len(PROMPTS), -1).sum(1)


@pytest.fixture(scope="module", params=[0, 1])
def tiny(request):
    return Tiny(request.param)


def most(tiny):
    """KL beyond which no β helps: −log π0(best answers), of the prompt where it is least."""
    best = tiny.rewards.view(len(PROMPTS), -1)
    chances = tiny.probabilities.view(len(PROMPTS), -1)
    return min(
        -math.log(float(chance[reward > reward.max() - 1e-9].sum()))
        for reward, chance in zip(best, chances, strict=True)
    )


@pytest.mark.parametrize("budget", [0.1, 0.5, 1.0])
def test_the_budget_is_met_by_the_optimum_at_one_beta(tiny, budget, monkeypatch):
    """Unbounded fluctuation: β stays what it was, and the answers are π0·exp(βR)/Z."""
    monkeypatch.setattr(budgets, "BAND", 100.0)
    assert budget < most(tiny)
    result = decode(tiny, {"r": Histograms(tiny)}, kl_budget=budget)
    assert by_prompt(result.p, result.spent).tolist() == pytest.approx([budget] * 2, abs=1e-3)
    half = len(tiny.finals) // len(PROMPTS)
    for prompt in PROMPTS:
        plans = [row.plan for (x, _), row in result.rows.items() if x == prompt]
        first = result.rows[prompt, ()].plan.beta
        # Where next to nothing can be gained, β hardly matters and is ill-conditioned.
        planned = [plan.beta for plan in plans if plan.left > 1e-3]
        assert len(planned) > 5
        assert planned == pytest.approx([first] * len(planned), rel=0.02)
        best, _ = optimum(tiny, first)
        own = slice(half * PROMPTS.index(prompt), half * (PROMPTS.index(prompt) + 1))
        assert float((result.p[own] - best[own]).abs().sum()) / 2 < 2e-3


@pytest.mark.parametrize("noise", [0.0, 1.5])
@pytest.mark.parametrize("budget", [0.3, 1.0])
def test_no_answer_goes_far_beyond_its_budget(tiny, noise, budget):
    result = decode(tiny, {"r": Histograms(tiny, noise)}, kl_budget=budget)
    assert by_prompt(result.p, torch.ones(())).tolist() == pytest.approx([1.0] * 2, abs=1e-5)
    assert float(result.spent.max()) <= (1 + budgets.BAND) * budget + 1e-3
    if not noise:
        assert float(result.spent.max()) > budget  # or the bound is no bound


def test_spent_and_left_are_a_martingale_however_wrong_the_distributions(tiny, monkeypatch):
    monkeypatch.setattr(budgets, "BAND", 100.0)
    result = decode(tiny, {"r": Histograms(tiny, noise=1.0)}, kl_budget=0.5)
    total = by_prompt(result.p, result.spent + result.left)
    assert total.tolist() == pytest.approx([0.5] * 2, abs=2e-3)
    assert float(by_prompt(result.p, result.left).max()) > 0.01


def test_beta_keeps_its_pace_where_distributions_disagree(tiny):
    result = decode(tiny, {"r": Histograms(tiny, noise=1.0)}, kl_budget=0.5)
    changes = []
    for (x, y), row in result.rows.items():
        earlier = [result.rows[x, y[:t]].plan.beta for t in range(len(y))]
        planned = [beta for beta in earlier if beta is not None]
        if planned and row.plan.beta is not None:
            changes.append(row.plan.beta / planned[-1])
    assert max(changes) == pytest.approx(budgets.PACE)
    assert min(changes) == pytest.approx(1 / budgets.PACE)
    assert any(1 / budgets.PACE + 0.001 < change < budgets.PACE - 0.001 for change in changes)


def test_what_cannot_be_spent_is_not(tiny):
    result = decode(tiny, {"r": Histograms(tiny)}, kl_budget=500.0)
    assert result.rows[PROMPTS[0], ()].plan.beta == MAX_BETA
    best = tiny.rewards.view(len(PROMPTS), -1).max(1).values
    assert by_prompt(result.p, tiny.rewards).tolist() == pytest.approx(best.tolist(), abs=1e-2)


def test_without_a_budget_it_is_the_base_bit_for_bit(tiny):
    result = decode(tiny, {"r": Histograms(tiny)}, kl_budget=0.0)
    torch.testing.assert_close(result.p, tiny.probabilities, rtol=1e-5, atol=1e-7)
    assert float(result.spent.max()) == 0


def test_several_scorers_share_one_budget(tiny, monkeypatch):
    """Opposite wishes of the same return: the larger weight wins, the budget is what is spent."""
    monkeypatch.setattr(budgets, "BAND", 100.0)
    scorers = {"up": Histograms(tiny), "down": Histograms(tiny, sign=-1.0)}
    result = decode(tiny, scorers, scorers={"up": 2.0, "down": 0.5}, kl_budget=0.4)
    total = by_prompt(result.p, result.spent + result.left)
    assert total.tolist() == pytest.approx([0.4] * 2, abs=5e-3)
    assert mean_reward(tiny, result.p) > mean_reward(tiny, tiny.probabilities) + 0.1
    turned = decode(tiny, scorers, scorers={"up": 0.5, "down": 2.0}, kl_budget=0.4)
    assert mean_reward(tiny, turned.p) < mean_reward(tiny, tiny.probabilities) - 0.1


def test_normalised_weights_are_divided_by_the_deviation(tiny):
    plain = decode(tiny, {"r": Histograms(tiny)}, kl_budget=0.3)
    scaled = decode(tiny, {"r": Histograms(tiny)}, kl_budget=0.3, normalize=True)
    torch.testing.assert_close(scaled.p, plain.p, rtol=1e-3, atol=1e-5)
    x = PROMPTS[0]
    assert scaled.rows[x, ()].plan.beta == pytest.approx(0.5 * plain.rows[x, ()].plan.beta)


# Floors.


@pytest.mark.parametrize("floor", [0.1, 0.4])
def test_floors_are_reached_and_push_no_further(tiny, floor):
    """By the mean over answers: lucky prefixes stay lucky, and d is that of the first step."""
    result = decode(tiny, {"r": Histograms(tiny)}, floors={"r": floor}, beta=0.0)
    reached = 0
    for prompt, mean in zip(PROMPTS, by_prompt(result.p, tiny.rewards), strict=True):
        value = tiny.value(prompt, ())
        assert float(mean) == pytest.approx(max(floor, value), abs=1e-3)
        first = result.rows[prompt, ()].plan.duals["r"]
        assert (first == 0) == (value >= floor)
        reached += value >= floor
        for (x, y), row in result.rows.items():
            if x == prompt and tiny.reach(x, y) > 1e-4:
                # Where next to nothing can be gained, d hardly matters and is ill-conditioned.
                spread = tiny.returns(x, y)[0]
                if float(spread.max() - spread.min()) > 0.1:
                    assert row.plan.duals["r"] == pytest.approx(first, rel=0.02, abs=1e-3)
                if first == 0:  # the base is left as it is
                    assert row.steps[len(row.prefix)].kl < 1e-9
    assert reached < len(PROMPTS) or floor == 0.1


def test_a_floor_beyond_all_returns_is_pushed_for_without_end(tiny):
    result = decode(tiny, {"r": Histograms(tiny)}, floors={"r": 5.0})
    assert {row.plan.duals["r"] for row in result.rows.values()} == {MAX_BETA}


def test_beta_goes_to_the_scorers_without_a_floor(tiny):
    """A scorer of any family, beside one with a floor that asks for nothing."""
    ends = FunctionScorer(lambda ids: float(ids[-1] == 0))
    both = {"r": Histograms(tiny), "ends": ends}
    weights = {"r": 3.0, "ends": 1.0}
    result = decode(tiny, both, scorers=weights, floors={"r": -5.0}, beta=2.0)
    alone = decode(tiny, {"ends": ends}, scorers={"ends": 1.0}, beta=2.0)
    torch.testing.assert_close(result.p, alone.p, rtol=1e-4, atol=1e-6)
    pushed = decode(tiny, both, scorers=weights, floors={"r": 0.6}, beta=2.0)
    assert mean_reward(tiny, pushed.p) > mean_reward(tiny, alone.p) + 0.05


# The pieces, against plain references.


def case(seed, rows=5, bins=7):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, 20, generator=generator)
    k = torch.randint(2, 9, (rows,), generator=generator)
    candidates = select(logits, k, torch.full((rows,), 0.9), int(k.max()))
    candidates.logprobs = candidates.logprobs.double()
    row, place = candidates.real.nonzero().T
    shape = (len(row), bins)
    log_p = (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).log_softmax(-1)
    returns = torch.linspace(-1, 2, bins, dtype=torch.float64)
    outlook = Outlook(log_p, returns, row, place, torch.ones(rows, dtype=torch.float64))
    return candidates, outlook


def purse(rows, left=None, before=None, **fields):
    zeros = torch.zeros(rows, dtype=torch.float64)
    left, before = (zeros if one is None else one for one in (left, before))
    later = dict.fromkeys(("unit", "cut", "behind"), zeros) | {"ahead": zeros + math.inf}
    return Purse(left, before, **{**later, **fields})


def mixtures(candidates, outlook):
    """p(R | prefix) of each row, summed up candidate by candidate, and π0(C)."""
    tilted, masses = [], []
    for r in range(len(candidates.counts)):
        own = outlook.row == r
        weights = candidates.logprobs[r, outlook.place[own]].exp()
        masses.append(float(weights.sum()))
        tilted.append(
            ((weights[:, None] * outlook.log_p[own].exp()).sum(0) / weights.sum()).numpy()
        )
    return tilted, masses


def tilted(p, returns, c):
    weights = p * np.exp(c * returns)
    return weights / weights.sum()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), beta=st.floats(0, 30))
def test_the_prospect_is_the_divergence_of_the_tilted_mixture(seed, beta):
    """For one scorer: K_β(mixture), and −log π0(C) for a tail that is cut."""
    candidates, outlook = case(seed)
    rows = len(candidates.counts)
    cut = torch.zeros(rows, dtype=torch.bool)
    betas = torch.full((rows,), beta, dtype=torch.float64)
    kl = forecast(betas, purse(rows), [outlook], candidates, cut).cost
    returns = outlook.returns.numpy()
    for r, (p, mass) in enumerate(zip(*mixtures(candidates, outlook), strict=True)):
        q = tilted(p, returns, beta)
        expected = float((q * np.log(q / p)).sum()) - math.log(mass)
        assert float(kl[r]) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6), left=st.floats(0.001, 3), before=st.just(0.0) | st.floats(0.1, 20)
)
def test_beta_is_scipys_root_as_far_as_its_pace_goes(seed, left, before):
    candidates, outlook = case(seed)
    rows = len(candidates.counts)
    cut = torch.zeros(rows, dtype=torch.bool)
    wanted = torch.full((rows,), left, dtype=torch.float64)
    last_betas = torch.full((rows,), before, dtype=torch.float64)
    betas, _, after = spend(purse(rows, wanted, last_betas), [outlook], candidates, cut)
    returns = outlook.returns.numpy()
    for r, (p, mass) in enumerate(zip(*mixtures(candidates, outlook), strict=True)):

        def excess(c, p=p, mass=mass):
            q = tilted(p, returns, c)
            return float((q * np.log(q / p)).sum()) - math.log(mass) - left

        if excess(0) >= 0 or excess(MAX_BETA) < 0:
            expected = 0.0 if excess(0) >= 0 else MAX_BETA
        else:
            expected = brentq(excess, 0, MAX_BETA, xtol=1e-10)
        if before:
            expected = min(max(expected, before / budgets.PACE), before * budgets.PACE)
        assert float(betas[r]) == pytest.approx(expected, abs=1e-6)
        own = outlook.row == r
        tilts = np.logaddexp.reduce(outlook.log_p[own].numpy() + betas[r].numpy() * returns, 1)
        log_pi0 = candidates.logprobs[r, outlook.place[own]].numpy()
        pi = np.exp(log_pi0 + tilts - np.logaddexp.reduce(log_pi0 + tilts))
        step = float(pi @ (np.log(pi) - log_pi0))
        assert step + pi @ after[r, outlook.place[own]].numpy() == pytest.approx(left, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), behind=st.integers(0, 30), ahead=st.integers(1, 30))
def test_the_pace_of_an_answer_is_the_mean_of_its_steps(seed, behind, ahead):
    """β against scipy's root of the definition: plain scores, tails that stay or are cut."""
    candidates, outlook = case(seed)
    rows, rng = len(candidates.counts), np.random.default_rng(seed)
    plain = Outlook.certain(outlook.log_p[:, 0], outlook.row, outlook.place, outlook.weight)
    stays = torch.from_numpy(rng.random(rows) < 0.5)
    unit, cut, left = (torch.from_numpy(rng.random(rows) * top) for top in (0.1, 0.02, 3.0))
    if not behind:
        unit, cut = torch.zeros_like(unit), torch.zeros_like(cut)
    tokens = {"behind": behind, "ahead": ahead}
    counts = {name: torch.full((rows,), float(n), dtype=left.dtype) for name, n in tokens.items()}
    betas, _, after = spend(
        purse(rows, left, unit=unit, cut=cut, **counts), [plain], candidates, stays
    )
    for r in range(rows):
        own = outlook.row == r
        p = candidates.logprobs[r, outlook.place[own]].exp().numpy()
        s = outlook.log_p[own, 0].numpy()
        if stays[r]:
            p, s = np.append(p, 1 - p.sum()), np.append(s, s.mean())

        def step(beta, p=p, s=s):
            pi = special.softmax(np.log(p) + beta * s)
            return float(np.sum(special.rel_entr(pi, p)))

        def excess(beta, r=r, step=step):
            past = beta**2 * float(unit[r]) + (0.0 if stays[r] else float(cut[r]))
            return step(beta) + (ahead - 1) * (past + step(beta)) / (behind + 1) - float(left[r])

        if excess(0) >= 0 or excess(MAX_BETA) < 0:
            expected = 0.0 if excess(0) >= 0 else MAX_BETA
        else:
            expected = brentq(excess, 0, MAX_BETA, xtol=1e-10)
        assert float(betas[r]) == pytest.approx(expected, abs=1e-6)
        rest = float(left[r]) - step(expected)
        assert after[r].tolist() == pytest.approx([rest] * after.shape[1], abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), narrow=st.booleans())
def test_a_root_is_where_bisection_finds_it(seed, narrow):
    rng = np.random.default_rng(seed)
    a, b, c, target = (torch.from_numpy(10 ** rng.uniform(-3, 1, 64)) for _ in range(4))

    def f(x):
        return a * (1 - (-b * x).exp()) + c * x**2 / 50

    low, high = torch.zeros_like(a), torch.full_like(a, MAX_BETA)
    expected = root_reference(f, target, low, high)
    if narrow:
        low = expected * torch.from_numpy(rng.uniform(0.9, 1.02, 64))
        high = low * 1.1
        expected = root_reference(f, target, low, high)
    torch.testing.assert_close(root(f, target, low, high), expected, rtol=1e-7, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), left=st.floats(0.001, 3))
def test_with_a_tail_that_stays_what_is_left_is_a_martingale(seed, left):
    """The mean over *all* tokens of what is left after each, and this step's KL, are what was."""
    candidates, outlook = case(seed)
    rows = len(candidates.counts)
    stays, free = torch.ones(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.float64)
    wanted = torch.full((rows,), left, dtype=torch.float64)
    betas, _, after = spend(purse(rows, wanted, free), [outlook], candidates, stays)
    for r in range(rows):
        n = int(candidates.counts[r])
        p = candidates.logprobs[r, :n].exp().numpy()
        log_p = outlook.log_p[outlook.row == r].numpy()
        bonus = np.logaddexp.reduce(log_p + float(betas[r]) * outlook.returns.numpy(), 1)
        weights = np.append(p, 1 - p.sum()) * np.exp(np.append(bonus, bonus.mean()))
        pi = weights / weights.sum()
        step = float((pi * np.append(bonus, bonus.mean())).sum() - np.log(weights.sum()))
        nats = after[r, [*range(n), -1]].numpy()
        assert step + pi @ nats == pytest.approx(left, abs=1e-6)
        assert nats[-1] == pytest.approx(nats[:n].mean())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), floor=st.floats(-1.5, 1.9) | st.floats(2.1, 2.5))
def test_a_dual_is_scipys_root(seed, floor):
    candidates, outlook = case(seed)
    floors = torch.full((len(candidates.counts),), floor, dtype=torch.float64)
    bounds = Bounds(floors[:, None], torch.full_like(floors, math.inf)[:, None])
    free, cut = torch.zeros_like(floors), torch.zeros(len(floors), dtype=torch.bool)
    duals = solve(free, bounds, free[:, None], [outlook], candidates, cut)[:, 0]
    returns = outlook.returns.numpy()
    for r, p in enumerate(mixtures(candidates, outlook)[0]):

        def excess(c, p=p):
            return float(tilted(p, returns, c) @ returns) - floor

        if excess(0) >= 0 or excess(MAX_BETA) < 0:
            expected = 0.0 if excess(0) >= 0 else MAX_BETA
        else:
            expected = brentq(excess, 0, MAX_BETA, xtol=1e-10)
        assert float(duals[r]) == pytest.approx(expected, abs=1e-6)


# Rows, records, faults, and invalid parameters.


def walk(guide, tiny, row, tokens):
    """A row through given tokens, as an engine would show them."""
    logits = dict(zip(tiny.states, tiny.at(tiny.log_pi0).float(), strict=True))
    x = tuple(row.prefix[: row.prompt_length].tolist())
    for t in range(len(row.prefix) - len(x), len(tokens)):
        row.prefix = np.array([*x, *tokens[:t]])
        fused = logits[x, tokens[:t]][None].clone()
        guide.step(fused, [(0, row)])
    return fused


def budgeted(guide, x, **fields):
    fields = {"kl_budget": 0.5, "k": 4, "mass": 1.0} | fields
    params = GuidanceParams.parse(fields).resolve(guide.registry.scorers)
    return Row(params, len(x), prefix=np.array(x), record_key="kept")


def test_records_tell_beta_and_duals(tiny):
    guide, x, y = Guide({"r": Histograms(tiny)}), PROMPTS[0], (1, 2, 3, 2)
    row = budgeted(guide, x, trace=True)
    walk(guide, tiny, row, y)
    [record] = guide.records.report("kept", x, [y], done=True)
    betas = [step["beta"] for step in record["trace"]]
    assert len(betas) == 4
    assert record["beta"] == {"mean": pytest.approx(sum(betas) / 4), "last": betas[-1]}
    row = budgeted(guide, x, kl_budget=None, floors={"r": 0.9}, trace=True)
    walk(guide, tiny, row, y)
    [record] = guide.records.report("kept", x, [y], done=True)
    duals = [step["duals"]["r"] for step in record["trace"]]
    assert record["duals"]["r"] == {"mean": pytest.approx(sum(duals) / 4), "last": duals[-1]}
    assert "beta" not in record
    plain = budgeted(guide, x, kl_budget=None)
    walk(guide, tiny, plain, y)
    [record] = guide.records.report("kept", x, [y], done=True)
    assert not {"beta", "duals"} & set(record)


def test_a_preempted_row_goes_on_with_its_budget(tiny):
    guide, x, y = Guide({"r": Histograms(tiny)}), PROMPTS[0], (1, 3, 2, 1)
    whole = walk(guide, tiny, budgeted(guide, x), y)
    guide.records.clear()
    walk(guide, tiny, budgeted(guide, x), y[:2])
    resumed = budgeted(guide, x)  # a new row, as the engine adds it again
    resumed.prefix = np.array([*x, *y[:2]])
    assert torch.equal(walk(guide, tiny, resumed, y), whole)


def test_a_row_that_has_lost_its_record_spends_no_more(tiny):
    guide, x, y = Guide({"r": Histograms(tiny)}), PROMPTS[0], (1, 3, 2, 1)
    resumed = budgeted(guide, x)
    resumed.prefix = np.array([*x, *y[:2]])
    walk(guide, tiny, resumed, y)
    assert [step.kl for step in resumed.steps.values()] == [0.0, 0.0]


def test_rows_of_a_batch_do_not_meet(tiny):
    """A budget, a floor, a fixed β and none of these, together and alone."""
    guide = Guide({"r": Histograms(tiny), "bad": Histograms(tiny, broken=True)})
    x = PROMPTS[1]
    kinds = [
        {},
        {"kl_budget": None, "floors": {"r": 0.6}},
        {"kl_budget": None, "beta": 2.0},
        {"kl_budget": 0.2, "tail": "mean", "k": 2},
        {"scorers": {"bad": 1.0}},
    ]
    kinds = [{"scorers": {"r": 1.0}} | kind for kind in kinds]
    base = torch.stack([tiny.log_pi0[-1, 0].float()] * (len(kinds) + 1))
    together = base.clone()
    rows = [budgeted(guide, x, **kind) for kind in kinds]
    guide.step(together, list(enumerate(rows)))
    assert torch.equal(together[-1], base[-1])
    assert [row.fault is not None for row in rows] == [False] * 4 + [True]
    assert "secret" not in rows[-1].fault.message
    for i, kind in enumerate(kinds):
        alone = base[:1].clone()
        row = budgeted(guide, x, **kind)
        row.prefix = np.array(x)
        guide.step(alone, [(0, row)])
        torch.testing.assert_close(together[i], alone[0])
        if row.plan is not None:
            assert rows[i].plan.after == pytest.approx(row.plan.after)
            assert rows[i].plan.rest == pytest.approx(row.plan.rest)
        assert (i == 4) == torch.equal(alone[0], base[0])


@pytest.mark.parametrize(
    "fields",
    [
        {"kl_budget": 1.0, "beta": 1.0},
        {"floors": {"a": 0.5}, "ceilings": {"a": 0.4}},
        {"floors": {"a": 0.5}, "utility": {"a": {"target": 0.4}}},
        {"ceilings": {}},
        {"ceilings": {"a": "1"}},
        {"ceilings": {"a": math.nan}},
        {"ceilings": {"a": -1e7}},
        {"k": "all", "ceilings": {"a": 1.0}},
        {"k": "all", "utility": {"a": {"at_least": 1.0}}},
        {"utility": {}},
        {"utility": {"A": "mean"}},
        {"utility": {"a": "median"}},
        {"utility": {"a": None}},
        {"utility": {"a": 1.0}},
        {"utility": {"a": {}}},
        {"utility": {"a": {"target": 1.0, "cvar": 0.5}}},
        {"utility": {"a": {"median": 1.0}}},
        {"utility": {"a": {"target": "1"}}},
        {"utility": {"a": {"target": True}}},
        {"utility": {"a": {"target": math.nan}}},
        {"utility": {"a": {"at_least": 10**400}}},
        {"utility": {"a": {"cvar": 0.0}}},
        {"utility": {"a": {"cvar": 1.01}}},
        {"utility": {str(i): "mean" for i in range(9)}},
        {"kl_budget": -0.1},
        {"kl_budget": math.inf},
        {"kl_budget": 1001},
        {"kl_budget": "1"},
        {"kl_budget": True},
        {"floors": {}},
        {"floors": {"A": 1}},
        {"floors": {"a": None}},
        {"floors": {"a": 1e7}},
        {"floors": ["a"]},
        {"floors": {str(i): 1 for i in range(9)}},
    ],
    ids=str,
)
def test_invalid_budgets_and_floors(fields):
    with pytest.raises(InvalidGuidance):
        GuidanceParams.parse(fields)


@pytest.mark.parametrize(
    "flat",
    [
        {"trimtab_floors": "a"},
        {"trimtab_floors": "a=1,a=2"},
        {"trimtab_ceilings": "a"},
        {"trimtab_utility": "a"},
        {"trimtab_utility": "a=target"},
        {"trimtab_utility": "a=target:x"},
        {"trimtab_utility": "a=mean,a=mean"},
        {"trimtab_utility": "a=mean:1"},
        {"trimtab_kl_budget": "1"},
    ],
)
def test_what_flat_fields_cannot_ask(flat):
    with pytest.raises(InvalidGuidance):
        from_xargs(flat)


def test_flat_fields_say_the_same():
    assert to_xargs(GuidanceParams(kl_budget=2.0))["trimtab_kl_budget"] == 2.0
    assert "trimtab_beta" not in to_xargs(GuidanceParams(kl_budget=2.0))
    floors = GuidanceParams(floors={"a": 0.5, "b": -1.0})
    assert to_xargs(floors)["trimtab_floors"] == "a=0.5,b=-1.0"
    assert from_xargs({"trimtab_floors": "a=0.5,b=-1"}) == floors
    sent = {"ceilings": {"b": 2}, "utility": {"a": {"target": 40}, "b": "mean"}, "kl_budget": 1}
    params = GuidanceParams.parse(sent)
    flat = to_xargs(params)
    assert flat["trimtab_ceilings"] == "b=2.0"
    assert flat["trimtab_utility"] == "a=target:40.0,b=mean"
    assert from_xargs(flat) == params


def test_floors_name_scorers_too():
    served = ["a", "b", "c"]
    floors = GuidanceParams(floors={"a": 0.5})
    assert floors.resolve(served, {"b": 2.0}).scorers == {"a": 1.0}
    more = GuidanceParams(floors={"a": 0.5}, scorers={"b": 2.0})
    assert more.resolve(served).scorers == {"b": 2.0, "a": 1.0}
    with pytest.raises(UnknownScorer) as caught:
        GuidanceParams(floors={"d": 0.5}).resolve(served)
    assert caught.value.param == "floors"
    ceilings = GuidanceParams(ceilings={"a": 0.5})
    assert ceilings.resolve(served, {"b": 2.0}).scorers == {"a": 0.0}
    more = GuidanceParams(ceilings={"a": 0.5}, scorers={"a": 2.0, "b": 1.0})
    assert more.resolve(served).scorers == {"a": 2.0, "b": 1.0}
    with pytest.raises(UnknownScorer) as caught:
        GuidanceParams(utility={"d": "mean"}).resolve(served)
    assert caught.value.param == "utility"
    with pytest.raises(InvalidGuidance, match="does not steer") as caught:
        GuidanceParams(scorers={"a": 1.0}, utility={"b": {"target": 1.0}}).resolve(served)
    assert caught.value.param == "utility"


def test_only_distributions_know_their_mean(tiny):
    served = {"r": Histograms(tiny), "plain": FunctionScorer(lambda ids: 0.0)}
    with pytest.raises(InvalidGuidance, match=r"'plain' is of family 'function'") as caught:
        GuidanceParams.parse({"floors": {"plain": 0.5}}).resolve(served)
    assert caught.value.param == "floors"
    both = {"scorers": {"plain": 1.0}}
    for field in ({"ceilings": {"plain": 0.5}}, {"utility": {"plain": {"target": 0.5}}}):
        with pytest.raises(InvalidGuidance, match=r"'plain' is of family 'function'") as caught:
            GuidanceParams.parse({**both, **field}).resolve(served)
        assert caught.value.param == next(iter(field))
    assert GuidanceParams.parse({**both, "utility": {"plain": "mean"}}).resolve(served)
    for fields in ({"kl_budget": 1.0}, {"floors": {"r": 0.5}, "scorers": {"plain": 1.0}}):
        GuidanceParams.parse(fields).resolve(served)
