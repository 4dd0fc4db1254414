"""Scorers of rows whose strengths or utilities are set at every step, from what they return:
with a kl_budget, floors, ceilings or a utility."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab import control
from trimtab.candidates import Candidates
from trimtab.outlook import Outlook
from trimtab.row_scorers import HOST, RowScorers
from trimtab.rows import Row, StepPlan, members_of
from trimtab.scores import Scores, planned
from trimtab.scoring.pool import Ids
from trimtab_models.readout import soft_value
from trimtab_models.transfers import to_host, upload

UNPLANNED = (
    "does not foresee the KL of what follows, so a kl_budget needs the row's max_tokens, which the "
    "engine has not set"
)


class PlannedScorers(RowScorers):
    """Calls scorers for rows that are planned."""

    def _plan(
        self,
        rows: Sequence[Row],
        groups: Sequence[Ids],
        candidates: Candidates,
        tail_mean: Tensor,
        like: Tensor,
    ) -> list[tuple[Scores, tuple[Tensor, Tensor]]]:
        """Set the strengths of rows that are planned.

        One copy takes what all their scorers return to the host.

        candidates, tail_mean: on the host. like: [rows, k], on the device.

        Returns:
            Their scores, with the factors of these and their means, [1, rows] each.
        """
        readings: dict[str, tuple[list[int], Tensor]] = {}
        for name in dict.fromkeys(name for row in rows for name in row.weights):
            members = members_of(name, rows, groups, planned=True)
            if members:
                own, theirs = [rows[r] for r in members], [groups[r] for r in members]
                readings[name] = members, self._returns(name, own, theirs, like.device)
        if not readings:
            return []
        hosts = to_host([flat for _, flat in readings.values()])
        outlooks = {
            name: self._outlook(name, rows, groups, members, flat)
            for (name, (members, _)), flat in zip(readings.items(), hosts, strict=True)
        }
        exact = replace(candidates, logprobs=candidates.logprobs.double())
        outlooks = control.follow(rows, outlooks, exact, tail_mean)
        step = []
        for name, outlook in outlooks.items():
            values = torch.full((len(groups), max(map(len, groups))), torch.nan)
            values[outlook.row, outlook.place] = self._planned_scores(name, rows, outlook)
            scores = planned(name, values, like)
            step.append((scores, self._scales(rows, scores, like.device)))
        return step

    def _planned_scores(self, name: str, rows: Sequence[Row], outlook: Outlook) -> Tensor:
        """The scores of a planned scorer, [n] float32: its bonus divided by its factor."""
        if not outlook.distributional:
            return outlook.returns[:, 0].float()
        members = [rows[r] for r in outlook.row.tolist()]
        factors = torch.tensor([self._factor(row, name) for row in members])
        scores = soft_value(outlook.log_p, outlook.returns, factors)
        if outlook.utility is None and outlook.doubt is None:
            return scores
        on_utility = [self._beta(row) * self._weight(row, name) for row in members]
        duals = [row.plan.duals.get(name, 0.0) if row.plan else 0.0 for row in members]
        c, d = torch.tensor([on_utility, duals], dtype=torch.float64)
        moment = outlook.tilt(c, d).moment
        aims = [row.params.utility_of(name) != "mean" for row in members]
        bound = [row.plan is not None and name in row.plan.doubt for row in members]
        own = (torch.tensor(aims) | torch.tensor(bound)) & (factors != 0)
        return torch.where(own, (moment / factors).float(), scores)

    def read_utility(
        self, name: str, rows: Sequence[Row], groups: Sequence[Ids]
    ) -> tuple[Tensor, Tensor]:
        """Mean return, and value of the utility at its strength, of each candidate, [Σ candidates].

        The value is (1/c)·log E exp(c·u(R)), and E u(R) for c = 0. Both on the host, float64; rows
        for which the scorer fails get a fault.
        """
        [flat] = to_host([self._returns(name, rows, groups, HOST)])
        outlook = self._outlook(name, rows, groups, range(len(rows)), flat)
        plans = [row.plan or StepPlan() for row in rows]
        outlook = control.with_utility(name, rows, plans, outlook)
        none = torch.zeros(len(outlook.row), dtype=torch.float64)
        strengths = [self._on_utility(rows[r], name) for r in outlook.row.tolist()]
        c = torch.tensor(strengths, dtype=torch.float64)
        mean, moment = outlook.tilt(none, none).mean, outlook.tilt(c, none).moment
        return mean, torch.where(c != 0, moment / c, outlook.utility_mean)

    def _returns(
        self, name: str, rows: Sequence[Row], groups: Sequence[Ids], device: torch.device
    ) -> Tensor:
        """A scorer's histograms, [Σ candidates, bins], or else its scores, [Σ candidates]."""
        scorer: Any = self.registry.scorer_of(rows[0], name)
        if not scorer.distributional:
            return self._read(name, rows, groups, device)

        def read(some: Sequence[Row], candidates: Sequence[Ids]) -> Callable[[], Tensor]:
            keys, prefixes = [row.key for row in some], [row.prefix for row in some]
            prompts = [row.prompt for row in some]
            states = self._states(scorer, some)
            return partial(scorer.histograms, keys, prefixes, candidates, prompts, **states)

        return self._result(name, rows, groups, read, scorer.returns.shape, device)

    def _outlook(
        self,
        name: str,
        rows: Sequence[Row],
        groups: Sequence[Ids],
        members: Sequence[int],
        flat: Tensor,
    ) -> Outlook:
        """What a scorer returned for the candidates of some rows, on the host.

        Rows for which it is not finite get a fault, and so do rows with a budget that nothing can
        plan.
        """
        scorer: Any = self.registry.scorer_of(rows[members[0]], name)
        foresees = scorer.distributional and scorer.foresees
        for r in members:
            if rows[r].params.kl_budget is not None and rows[r].max_tokens is None and not foresees:
                self.fail(rows[r], name, UNPLANNED)
        selected, candidates = [rows[r] for r in members], [groups[r] for r in members]
        weight = torch.zeros(len(rows), dtype=torch.float64)
        for r in members:
            weight[r] = self._weight(rows[r], name)
        row, place = map(torch.from_numpy, _places(members, candidates))
        flat = self._finite(name, selected, candidates, flat)
        if not scorer.distributional:
            return Outlook.certain(flat, row, place, weight)
        log_p = flat.double().log_softmax(-1)
        known = 1.0 if scorer.info.known_at_end is None else scorer.info.known_at_end
        returns = scorer.returns.double()
        return Outlook(log_p, returns, row, place, weight, scorer.foresees, known)

    def _scales(
        self, rows: Sequence[Row], scores: Scores, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Factors and means of a scorer whose strength is planned, [1, rows] each."""
        [name] = scores.names
        scales = torch.zeros(2, 1, len(rows))
        for r in scores.members:
            row = rows[r]
            scales[:, 0, r] = torch.tensor([self._factor(row, name), self._mean(row, name)])
        factor, mean = upload(scales, device)
        return factor, mean

    def _on_utility(self, row: Row, name: str) -> float:
        """The strength on a scorer's utility; 0 if this is the mean."""
        if row.params.utility_of(name) == "mean":
            return 0.0
        return self._beta(row) * self._weight(row, name)

    def _factor(self, row: Row, name: str) -> float:
        """The factor of a planned scorer's scores: the strength on its utility, or on its mean."""
        return self._on_utility(row, name) or self._strength(row, name)

    def _mean(self, row: Row, name: str) -> float:
        """What is taken off a scorer's scores."""
        return self.registry.scorer_of(row, name).info.mean if row.params.normalize else 0.0


def _places(members: Sequence[int], groups: Sequence[Ids]) -> tuple[Ids, Ids]:
    """Row, and index in the row, of each packed candidate, each [Σ candidates] int64."""
    sizes = [len(group) for group in groups]
    return np.repeat(members, sizes), np.concatenate([np.arange(size) for size in sizes])
