"""Transfers between the host and a device, with as few waits for the device as possible.

A copy to the host waits until the device has done all earlier work. A copy to the device waits
too, unless it starts from pinned memory. On the CPU nothing is copied.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; from the host to CUDA without a wait."""
    if values.device.type == "cpu" and device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors on the host: one packed copy, so one wait, however many they are."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return list(tensors)
    packed = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors])
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    parts = packed.cpu().split(sizes)
    return [
        # A copy begins at an aligned address, as its type needs.
        part.clone().view(tensor.dtype).view(tensor.shape)
        for part, tensor in zip(parts, tensors, strict=True)
    ]
