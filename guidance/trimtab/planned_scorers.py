"""Scorers whose strengths are set at every step, from what they return: kl_budget and floors."""

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
from trimtab.row_scorers import RowScorers
from trimtab.rows import Row, members_of
from trimtab.scores import Scores, planned
from trimtab.scoring.pool import Ids
from trimtab_models.readout import soft_value
from trimtab_models.transfers import to_host, upload


class PlannedScorers(RowScorers):
    """Calls scorers for rows with a kl_budget or floors."""

    def _plan(
        self,
        rows: Sequence[Row],
        groups: Sequence[Ids],
        candidates: Candidates,
        tail_mean: Tensor,
        like: Tensor,
    ) -> list[tuple[Scores, tuple[Tensor, Tensor]]]:
        """Set the strengths of rows with a kl_budget or floors.

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
        control.follow(rows, outlooks, exact, tail_mean)
        step = []
        for name, outlook in outlooks.items():
            values = torch.full((len(groups), max(map(len, groups))), torch.nan)
            c = torch.tensor([self._strength(rows[r], name) for r in outlook.row.tolist()])
            values[outlook.row, outlook.place] = (
                soft_value(outlook.log_p, outlook.returns, c)
                if outlook.distributional
                else outlook.returns[:, 0].float()
            )
            scores = planned(name, values, like)
            step.append((scores, self._scales(rows, scores, like.device)))
        return step

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

        Rows for which it is not finite get a fault.
        """
        scorer: Any = self.registry.scorer_of(rows[members[0]], name)
        selected, candidates = [rows[r] for r in members], [groups[r] for r in members]
        weight = torch.zeros(len(rows), dtype=torch.float64)
        for r in members:
            if rows[r].params.kl_budget is not None:
                weight[r] = self._weight(rows[r], name)
        row, place = map(torch.from_numpy, _places(members, candidates))
        flat = self._finite(name, selected, candidates, flat)
        if not scorer.distributional:
            return Outlook.certain(flat, row, place, weight)
        log_p = flat.double().log_softmax(-1)
        return Outlook(log_p, scorer.returns.double(), row, place, weight, scorer.foresees)

    def _scales(
        self, rows: Sequence[Row], scores: Scores, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Factors and means of a scorer whose strength is planned, [1, rows] each."""
        [name] = scores.names
        scales = torch.zeros(2, 1, len(rows))
        for r in scores.members:
            row = rows[r]
            scales[:, 0, r] = torch.tensor([self._strength(row, name), self._mean(row, name)])
        factor, mean = upload(scales, device)
        return factor, mean

    def _mean(self, row: Row, name: str) -> float:
        """What is taken off a scorer's scores."""
        return self.registry.scorer_of(row, name).info.mean if row.params.normalize else 0.0


def _places(members: Sequence[int], groups: Sequence[Ids]) -> tuple[Ids, Ids]:
    """Row, and index in the row, of each packed candidate, each [Σ candidates] int64."""
    sizes = [len(group) for group in groups]
    return np.repeat(members, sizes), np.concatenate([np.arange(size) for size in sizes])
