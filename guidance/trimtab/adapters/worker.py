"""The worker extension at its documented path: trimtab.adapters.worker.GuidanceWorker."""

from trimtab.adapters.vllm.worker import GuidanceWorker

__all__ = ["GuidanceWorker"]
