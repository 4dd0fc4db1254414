"""vLLM's model runners on a CPU: call `use` before anything imports vLLM."""

import os
import types


def use(runner: str) -> None:
    """Set this process up for a runner, in one process: v1, v1-async, or v2."""
    os.environ.update(
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_NO_USAGE_STATS="1",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
    )
    if runner != "v1":
        _stand_in_for_cuda()
    if runner == "v1-async":
        from vllm.platforms.cpu import CpuPlatform

        original = CpuPlatform.check_and_update_config

        def with_asynchronous_scheduling(cls, config):
            original.__func__(cls, config)
            config.scheduler_config.async_scheduling = True

        CpuPlatform.check_and_update_config = classmethod(with_asynchronous_scheduling)
    if runner == "v2":
        os.environ.update(TRITON_INTERPRET="1", VLLM_USE_V2_MODEL_RUNNER="1")
        import triton.backends

        class Driver:
            @staticmethod
            def is_active():
                return True

        triton.backends.backends["cpu"] = types.SimpleNamespace(driver=Driver, compiler=None)
        _correct_the_interpreter()


def _correct_the_interpreter():
    """Two faults of Triton 3.9.

    It interprets a scalar comparison as integers where a mask is wanted, and fails. Of a GPU's
    library of functions it has stubs that return None; vLLM uses one, with sampled draft tokens.
    """
    from triton import language as tl
    from triton.language.extra import libdevice
    from triton.runtime.interpreter import InterpreterBuilder

    libdevice.log1p = lambda x: tl.log(1 + x)

    original = InterpreterBuilder.create_splat

    def splat(self, type_, value):
        handle = original(self, type_, value)
        if value.data.dtype == bool:
            handle.data = handle.data.astype(bool)
        return handle

    InterpreterBuilder.create_splat = splat


def _stand_in_for_cuda():
    """Let CPU runners take the paths that expect CUDA's streams and events."""
    import contextlib

    import torch

    class Nothing:
        def __init__(self, *_, **__):
            pass

        def __getattr__(self, _):
            return lambda *_, **__: None

    for name in ("Event", "Stream"):
        setattr(torch.cuda, name, Nothing)
    torch.Event = Nothing
    torch.cuda.current_stream = lambda *_: Nothing()
    torch.cuda.stream = lambda *_: contextlib.nullcontext()
