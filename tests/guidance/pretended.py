"""A CUDA device that need not exist: its tensors lie on the CPU, and every wait for it is counted.

As on a device, a copy to the host, a number read from it, and a shape that depends on data wait. So
does a copy from the host, unless it is asynchronous and starts from pinned memory. An asynchronous
copy to the host arrives at the next wait of any kind; whoever reads it earlier is refused. An event
waits, unless the device was waited for since it was recorded. Operations between the two are
refused.
"""

import ctypes
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
CUDA = torch.device("cuda:0")
DEPEND_ON_DATA = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Holder(torch.Tensor):
    """A tensor that stands for `inner`, on the CPU."""

    device_of = torch.device("cpu")

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=cls.device_of,
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Pretended.now.run(func, args, kwargs or {})


class Pinned(Holder):
    """Pinned memory of the host."""


class UnderWay(Holder):
    """Memory of the host to which the device still copies, until it is waited for."""

    sent = 0


class Event:
    """A CUDA event."""

    at = 0

    def record(self, stream):
        self.at = Pretended.now.moment()

    def synchronize(self):
        device = Pretended.now
        if device.done < self.at:
            device.wait("event")


class OnDevice(Holder):
    """A tensor of the device."""

    device_of = CUDA

    def tolist(self):
        return self.cpu().tolist()


class Pretended(TorchDispatchMode):
    """The device; `waits` are the names of the operations that have waited for it.

    uploads: the shapes of the copies from the host.
    """

    now = None

    def __init__(self):
        super().__init__()
        self.waits, self.uploads = [], []
        self.time, self.done = 0, 0  # of what was asked of the device; what it has surely done

    def moment(self):
        """The time of what is asked of the device now."""
        self.time += 1
        return self.time

    def wait(self, what):
        self.waits.append(what)
        self.done = self.time

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        if func._can_decompose():  # in inference mode, composite operations come whole
            with self:
                return func.decompose(*args, **kwargs)
        name = func.overloadpacket.__name__
        under_way = False
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
        if name in DEPEND_ON_DATA and ours:
            self.wait(name)
        if any(isinstance(t, UnderWay) and t.sent > self.done for t in tensors):
            raise RuntimeError(f"{func} reads what has not arrived")
        if name in INDEXING and ours:
            for index in args[1]:
                if index is not None and (
                    index.dtype in (torch.bool, torch.uint8) or index.device.type == "cpu"
                ):
                    self.wait(f"{name} by {index.dtype} from {index.device.type}")
        elif name in ("_to_copy", "copy_"):
            under_way = self._copy(name, args, kwargs)
        elif ours and any(not isinstance(t, OnDevice) and t.dim() for t in tensors):
            raise RuntimeError(f"{func} mixes devices")
        target = kwargs.get("device")
        if target is None:
            there = bool(ours) if name != "copy_" else isinstance(args[0], OnDevice)
        else:
            there, kwargs = torch.device(target).type == "cuda", {**kwargs, "device": "cpu"}
        held = {id(tensor.inner): tensor for tensor in tensors if isinstance(tensor, Holder)}
        plain_args, plain_kwargs = tree_map_only(Holder, lambda t: t.inner, (args, kwargs))
        out = func(*plain_args, **plain_kwargs)

        def wrapped(tensor):
            if id(tensor) in held:  # in place
                return held[id(tensor)]
            if under_way:
                tensor = UnderWay(tensor)
                tensor.sent = self.moment()
                return tensor
            return OnDevice(tensor) if there else tensor

        return tree_map_only(torch.Tensor, wrapped, out)

    def _copy(self, name, args, kwargs):
        """Count a copy; whether it goes on behind the host's back."""
        if name == "copy_":
            target, source = args[0].device, args[1]
        else:
            target, source = torch.device(kwargs.get("device") or args[0].device), args[0]
        asynchronous = kwargs.get("non_blocking", False) or (name == "copy_" and True in args[2:])
        if target.type == source.device.type:
            return False
        if target.type == "cpu":
            if name == "_to_copy" and asynchronous:  # into new pinned memory
                return True
            self.wait("copy to the host")
            return False
        self.uploads.append(tuple(source.shape))
        if not (asynchronous and isinstance(source, Pinned)):
            self.wait("blocking copy from the host")
        return False


@contextmanager
def pretended(monkeypatch):
    """The device, in use."""
    lib = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 2).in_dll(lib, "_ZN3c104impl26device_guard_impl_registryE")
    before, guards[1] = guards[1], guards[1] or guards[0]  # of DeviceType::CUDA
    with monkeypatch.context() as patch, Pretended() as device:
        patch.setattr(Pretended, "now", device)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor then copies to the device
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: None)
        patch.setattr(torch.Tensor, "pin_memory", lambda self: Pinned(self.clone()))
        yield device
    torch._C._set_only_lift_cpu_tensors(False)
    guards[1] = before


def there(tensor):
    """A tensor's copy on the device."""
    return OnDevice(tensor.detach().clone())


def move(module, there=there):
    """Move a module to the device, or to wherever `there` copies a tensor."""
    for part in module.modules():
        for name, tensor in part._parameters.items():
            if tensor is not None:
                part._parameters[name] = torch.nn.Parameter(there(tensor), requires_grad=False)
        for name, tensor in part._buffers.items():
            if tensor is not None:
                part._buffers[name] = there(tensor)
