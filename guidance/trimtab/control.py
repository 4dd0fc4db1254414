"""Strengths that follow a target: β from a KL budget, a scorer's own from a floor on its mean."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trimtab.budget import Purse, spend
from trimtab.candidates import Candidates
from trimtab.floors import dual
from trimtab.outlook import Outlook
from trimtab.rows import Row, StepPlan


def follow(
    rows: Sequence[Row], outlooks: Mapping[str, Outlook], candidates: Candidates, tail_mean: Tensor
) -> None:
    """Fill in the plans of this step's rows; rows with one candidate or a fault have no outlook.

    candidates: float64, on the host.
    """
    plans = [row.plan or StepPlan() for row in rows]
    seen = {r for outlook in outlooks.values() for r in outlook.row.tolist()}
    if any(rows[r].params.kl_budget is not None for r in seen):
        purse = Purse.of(plans)
        betas, after = spend(purse, list(outlooks.values()), candidates, tail_mean)
        for r in seen:
            plan = rows[r].plan
            if plan is not None and rows[r].params.kl_budget is not None:
                plan.beta = float(betas[r])
                n = int(candidates.counts[r])
                tokens, nats = candidates.tokens[r, :n].tolist(), after[r].tolist()
                plan.after, plan.rest = dict(zip(tokens, nats[:n], strict=True)), nats[-1]
    for name, outlook in outlooks.items():
        floors = torch.tensor([(row.params.floors or {}).get(name, -math.inf) for row in rows])
        if not floors.isfinite().any():
            continue
        duals = dual(floors.double(), outlook, candidates)
        for r in outlook.row.unique().tolist():
            plan = rows[r].plan
            if plan is not None and name in (rows[r].params.floors or {}):
                plan.duals[name] = float(duals[r])
