"""Guidance inside vLLM: everything here, and nothing else of this package, imports vLLM."""

from trimtab.adapters.vllm.processor import GuidanceProcessor
from trimtab.adapters.vllm.worker import GuidanceWorker

__all__ = ["GuidanceProcessor", "GuidanceWorker"]
