"""Held-out evaluations: they lower a learning rate, end a training, and keep its best weights.

An evaluation is better if its figure is lower than all before it. After each `patience` + 1 that
are not, the rate is multiplied by `decay`, as by torch's ReduceLROnPlateau without a threshold;
after `count` in a row, the training ends.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trimtab_models.training.grounded.settings import Stopping


class Stopper:
    """The evaluations of one network so far.

    Args:
        settings: when to lower the rate, and when to end.
        model: the network; its weights at the best evaluation are kept.
        optimiser: its rate is lowered.
    """

    def __init__(self, settings: Stopping, model: Any, optimiser: Optimizer) -> None:
        self.settings, self.model, self.optimiser = settings, model, optimiser
        self.best: float | None = None
        self.weights: dict[str, Tensor] = {}
        self.since_best = 0  # evaluations
        self.since_decay = 0  # those without a better one, since the last decay

    @property
    def ended(self) -> bool:
        """Whether the training is to end."""
        return self.since_best >= self.settings.count

    def see(self, figure: float) -> None:
        """Take in the figure of an evaluation; lower is better."""
        if self.best is None or figure < self.best:
            self.best, self.since_best, self.since_decay = figure, 0, 0
            state = self.model.state_dict()
            self.weights = {name: part.detach().clone() for name, part in state.items()}
            return
        self.since_best += 1
        self.since_decay += 1
        if self.since_decay > self.settings.patience:
            self.since_decay = 0
            for group in self.optimiser.param_groups:
                group["lr"] *= self.settings.decay

    @torch.no_grad()
    def keep_best(self) -> None:
        """Give the network its weights at the best evaluation, if there was one."""
        if self.weights:
            self.model.load_state_dict(self.weights)

    def state(self) -> dict[str, Any]:
        """Everything that later evaluations depend on, but for the optimiser's rate."""
        names = ("best", "weights", "since_best", "since_decay")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        for name, value in state.items():
            setattr(self, name, value)
