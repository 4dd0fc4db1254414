"""A run's length, and what must fit into it: warm-up, logs, and evaluations.

A fixed number of steps that suits a long run can be all of a short one: at a warm-up of 50 steps, a
run of 23 would never reach half of its learning rate.
"""

import logging
import math
from typing import Any

from transformers import Trainer

log = logging.getLogger(__name__)

MOST_WARMUP = 50
"""Maximum number of warm-up steps, unless a run sets its own."""


def warmup(steps: int) -> int:
    """Warm-up steps of a run that does not set them: a tenth of its steps, at most 50."""
    return min(MOST_WARMUP, math.ceil(steps / 10))


class FittedTrainer(Trainer):
    """A Trainer that fits its schedule to the number of its steps, and prints it.

    scales_warmup: whether `warmup` sets the warm-up steps, because the settings do not.
    """

    scales_warmup = False

    def set_initial_training_values(self, *arguments: Any) -> Any:
        """Trainer's own values, before it makes its schedule; a resumed run has the same."""
        values = super().set_initial_training_values(*arguments)
        epoch, steps = values[1], values[-1]  # optimiser steps in an epoch, and in the run
        if self.scales_warmup:
            self.args.warmup_steps = warmup(steps)
        # A run that is shorter than an interval would log no loss at all.
        self.args.logging_steps = min(self.args.logging_steps, steps)
        self._check_early_stopping(steps)
        if self.is_world_process_zero():
            log.warning(
                "steps: %d, epochs: %g, warm-up steps: %d",
                steps,
                round(steps / epoch, 3),
                self.args.get_warmup_steps(steps),
            )
        return values

    def _check_early_stopping(self, steps: int) -> None:
        """Refuse early stopping without evaluations to compare.

        Raises:
            ValueError: the only evaluation would be that at the end.
        """
        every = self.args.eval_steps
        if self.args.load_best_model_at_end and every is not None and every >= steps:
            most = max(1, steps // 2)
            raise ValueError(
                f"early_stopping compares evaluations, and a run of {steps} steps has only one, at "
                f"its end; set eval_steps to at most {most} and save_steps to a multiple of it, "
                "or leave early_stopping out."
            )
