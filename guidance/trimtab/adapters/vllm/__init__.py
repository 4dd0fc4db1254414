"""Guidance inside vLLM: the only part of this package that imports vLLM."""

from trimtab.adapters.vllm.processor import GuidanceProcessor
from trimtab.adapters.vllm.worker import GuidanceWorker

__all__ = ["GuidanceProcessor", "GuidanceWorker"]
