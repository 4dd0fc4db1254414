"""Guidance inside vLLM: in the guidance package, only this folder imports vLLM."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.adapters.vllm.processor import GuidanceProcessor
    from trimtab.adapters.vllm.worker import GuidanceWorker

__all__ = ["GuidanceProcessor", "GuidanceWorker"]


def __getattr__(name: str) -> Any:
    """The documented names, imported when they are first used: vLLM's import takes seconds."""
    if name == "GuidanceProcessor":
        from trimtab.adapters.vllm.processor import GuidanceProcessor

        return GuidanceProcessor
    if name == "GuidanceWorker":
        from trimtab.adapters.vllm.worker import GuidanceWorker

        return GuidanceWorker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
