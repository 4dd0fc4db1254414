"""Offline training of scorers: one objective, one configuration, one command.

    trimtab train td-lambda --config demo.yaml --set out=scorers/mine

config.py    settings of a run            trainer.py         the loop and its loss
initial.py   the initial network          saves.py           checkpoints that survive a kill
run.py       from data to a checkpoint    output_checks.py   checks of the output directory
best.py      one training, or the best of several learning rates
dpo.py       TRL's, for log-ratio scorers schedule.py        warm-up, and intervals that fit a run
probes.py    where objectives read probes texts/            scorers that read text
"""

from trimtab_models.training.saves import clear
from trimtab_models.training.trainer import describe, fit, train

__all__ = ["clear", "describe", "fit", "train"]
