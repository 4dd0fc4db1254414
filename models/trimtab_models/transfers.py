"""Transfers between the host and a device, with as few waits for the device as possible.

A copy to the host waits until the device has done all earlier work. A copy to the device waits
too, unless it starts from pinned memory. On the CPU nothing is copied.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Form = tuple[torch.dtype, torch.Size]


def upload(values: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; from the host to CUDA without a wait."""
    if values.device.type == "cpu" and device.type == "cuda":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors on the host: one packed copy, so one wait, however many they are."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return list(tensors)
    return _unpacked(_packed(tensors).cpu(), _forms(tensors))


class ToHost:
    """Tensors on their way to the host, in one packed copy, while nobody waits.

    `read` waits for this copy alone, and only if the device has not yet done the work before it.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._forms = _forms(tensors)
        self._here: Sequence[Tensor] | None = None
        if all(tensor.device.type == "cpu" for tensor in tensors):
            self._here = tensors
            return
        packed = _packed(tensors)
        self._packed = packed.to("cpu", non_blocking=True)  # from CUDA, into pinned memory
        self._copied = torch.cuda.Event()
        self._copied.record(torch.cuda.current_stream(packed.device))

    def read(self) -> list[Tensor]:
        """The tensors on the host."""
        if self._here is not None:
            return list(self._here)
        self._copied.synchronize()
        return _unpacked(self._packed, self._forms)


def _packed(tensors: Sequence[Tensor]) -> Tensor:
    """A copy of all bytes of tensors on one device, [bytes] uint8."""
    return torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors])


def _forms(tensors: Sequence[Tensor]) -> list[Form]:
    return [(tensor.dtype, tensor.shape) for tensor in tensors]


def _unpacked(packed: Tensor, forms: Sequence[Form]) -> list[Tensor]:
    """Tensors from their bytes, [bytes] uint8 on the host."""
    sizes = [dtype.itemsize * shape.numel() for dtype, shape in forms]
    return [
        # A copy begins at an aligned address, as its type needs.
        part.clone().view(dtype).view(shape)
        for part, (dtype, shape) in zip(packed.split(sizes), forms, strict=True)
    ]
