"""Strengths and utilities that follow a target, set at each step from what scorers expect.

β from a KL budget (budget.py), the strengths of floors and ceilings (duals.py), and η of cvar
(cvar.py): in a row with one of them, or with a utility, all scorers are read to the host first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trimtab.budget import Purse, spend
from trimtab.candidates import Candidates
from trimtab.cvar import eta, mixture
from trimtab.duals import Bounds, solve
from trimtab.outlook import Outlook
from trimtab.prospect import Prospect, prospect
from trimtab.rows import Row, StepPlan
from trimtab.utility import kind_of, levels

ROUNDS = 3
"""Times that a step finds β for η, and η for β, where a kl_budget meets a new cvar."""


def follow(
    rows: Sequence[Row], outlooks: Mapping[str, Outlook], candidates: Candidates, tail_mean: Tensor
) -> dict[str, Outlook]:
    """Fill in the plans of this step's rows; rows with one candidate or a fault have no outlook.

    candidates: float64, on the host.

    Returns:
        The outlooks with the rows' utilities.
    """
    plans = [row.plan or StepPlan() for row in rows]
    budgeted = torch.tensor([row.params.kl_budget is not None for row in rows])
    fixed = torch.tensor([row.params.beta for row in rows], dtype=torch.float64)
    betas = torch.where(budgeted, 0.0, fixed)
    new = _without_eta(rows, plans, outlooks)
    bounds, start = _bounds(rows, plans, outlooks)
    outlooks = {
        name: _with_doubt(name, rows, plans, outlooks[name], candidates) for name in outlooks
    }
    for _ in range(ROUNDS if any(budgeted[r] for r, _ in new) else 1):
        for r, name in new:
            c = float(betas[r] * outlooks[name].weight[r])
            _, share = kind_of(rows[r].params.utility_of(name))
            plans[r].eta[name] = eta(r, share, c, outlooks[name], candidates)
        outlooks = {name: with_utility(name, rows, plans, of) for name, of in outlooks.items()}
        own = list(outlooks.values())
        duals, after = torch.zeros_like(start), None
        if budgeted.any():
            some = bounds.only(budgeted)
            spent, duals, after = spend(Purse.of(plans), own, candidates, tail_mean, some, start)
            betas = torch.where(budgeted, spent, fixed)
        some = bounds.only(~budgeted)
        if some.any:
            others = solve(betas, some, start, own, candidates, tail_mean)
            duals = torch.where(budgeted[:, None], duals, others)
    made = prospect(betas, duals, own, candidates, tail_mean)
    _note(rows, plans, outlooks, candidates, betas, duals, made, after)
    return dict(outlooks)


def with_utility(
    name: str, rows: Sequence[Row], plans: Sequence[StepPlan], outlook: Outlook
) -> Outlook:
    """An outlook with the rows' utilities of its scorer."""
    kinds = [row.params.utility_of(name) for row in rows]
    if all(kind == "mean" for kind in kinds):
        return outlook
    pairs = zip(kinds, plans, strict=True)
    own = [levels(kind, outlook.returns, plan.eta.get(name, 0.0)) for kind, plan in pairs]
    return replace(outlook, utility=torch.stack(own))


def _with_doubt(
    name: str,
    rows: Sequence[Row],
    plans: Sequence[StepPlan],
    outlook: Outlook,
    candidates: Candidates,
) -> Outlook:
    """An outlook that knows what cannot be steered of the returns of rows that bound them.

    Its scorer knows a share of the reward's variance at the end. So of the variance at the first
    scored step of an answer, the rest is never known. After the stop token, nothing is steered.
    """
    bounded = [r for r in outlook.members if name in rows[r].params.bounded]
    if not bounded:
        return outlook
    doubt, stop = torch.zeros(len(rows), dtype=torch.float64), torch.full((len(rows),), -1)
    for r in bounded:
        if name not in plans[r].doubt:
            p = mixture(r, outlook, candidates).exp()
            variance = float(p @ outlook.returns.square() - (p @ outlook.returns).square())
            plans[r].doubt[name] = max(1 - outlook.known, 0.0) * variance
        doubt[r] = plans[r].doubt[name]
        token = rows[r].stop_token
        stop[r] = -1 if token is None else token
    ends = candidates.tokens[outlook.row, outlook.place] == stop[outlook.row]
    each = torch.where(ends, torch.inf, doubt[outlook.row])  # [n]
    return replace(outlook, doubt=each) if each.any() else outlook


def _note(
    rows: Sequence[Row],
    plans: Sequence[StepPlan],
    outlooks: Mapping[str, Outlook],
    candidates: Candidates,
    betas: Tensor,
    duals: Tensor,
    made: Prospect,
    after: Tensor | None,
) -> None:
    """Write what was solved into the plans."""
    moves = made.means - made.mean.T[..., None]  # [scorers, rows, k + 1]
    for r in sorted({r for outlook in outlooks.values() for r in outlook.members}):
        plan, params, n = plans[r], rows[r].params, int(candidates.counts[r])
        tokens = candidates.tokens[r, :n].tolist()
        if params.kl_budget is not None and after is not None:
            plan.beta = float(betas[r])
            nats = after[r].tolist()
            plan.after, plan.rest = dict(zip(tokens, nats[:n], strict=True)), nats[-1]
        for i, name in enumerate(outlooks):
            if name in params.bounded:
                plan.duals[name] = float(duals[r, i])
                gains = moves[i, r].tolist()
                plan.gains[name] = dict(zip(tokens, gains[:n], strict=True))
                plan.gain[name] = gains[-1]


def _without_eta(
    rows: Sequence[Row], plans: Sequence[StepPlan], outlooks: Mapping[str, Outlook]
) -> list[tuple[int, str]]:
    """Rows and scorers whose utility is a cvar without η."""
    return [
        (r, name)
        for name, outlook in outlooks.items()
        if any(row.params.utility is not None for row in rows)
        for r in outlook.members
        if kind_of(rows[r].params.utility_of(name))[0] == "cvar" and name not in plans[r].eta
    ]


def _bounds(
    rows: Sequence[Row], plans: Sequence[StepPlan], outlooks: Mapping[str, Outlook]
) -> tuple[Bounds, Tensor]:
    """The bounds of the rows at this step, and the strengths of their last one."""
    low = torch.full((len(rows), len(outlooks)), -math.inf, dtype=torch.float64)
    high, start = torch.full_like(low, math.inf), torch.zeros_like(low)
    for i, (name, outlook) in enumerate(outlooks.items()):
        for r in outlook.members:
            luck, params = plans[r].luck.get(name, 0.0), rows[r].params
            low[r, i] = (params.floors or {}).get(name, -math.inf) + luck
            high[r, i] = (params.ceilings or {}).get(name, math.inf) + luck
            start[r, i] = plans[r].held.get(name, 0.0)
    return Bounds(low, high), start
