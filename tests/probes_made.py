"""Probes with random weights, which steer strongly."""

import torch

from trimtab_models import checkpoint, probe
from trimtab_models.checkpoint import ScorerInfo


def made(directory, base, outputs=7, seed=0, **info):
    """A checkpoint of one; info: fields of its ScorerInfo."""
    torch.manual_seed(seed)
    network = probe.new(base, outputs=outputs)
    for part in (network.level, network.factors):
        torch.nn.init.normal_(part.weight, std=0.3)
    return checkpoint.save(network, None, ScorerInfo(family="probe", **info), directory)
