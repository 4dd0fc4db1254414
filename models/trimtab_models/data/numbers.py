"""Numbers that fit into float32, in which all networks and losses compute."""

import torch

FLOAT32 = torch.finfo(torch.float32).max


def finite(value: object) -> bool:
    """Whether a value is a number that is finite in float32."""
    return isinstance(value, int | float) and type(value) is not bool and abs(value) <= FLOAT32
