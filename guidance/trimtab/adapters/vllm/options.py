"""Options of every vLLM engine of ours, in the server and offline."""

from vllm.platforms import current_platform

from trimtab.params import MAX_K

PROCESSOR = "trimtab.adapters.vllm:GuidanceProcessor"
WORKER = "trimtab.adapters.worker.GuidanceWorker"


def chunked_prefill(requested: bool | None) -> bool | None:
    """Whether prompts are processed in chunks: as requested; default on the CPU: no."""
    # On the CPU, vLLM 0.32 crashes on a seeded request whose prompt is chunked: it rewinds the
    # request's random generator, which only CUDA's generators can do.
    return False if requested is None and current_platform.is_cpu() else requested


def logprobs_limit(requested: int | None) -> int:
    """vLLM's max_logprobs: as requested, but enough for the candidates of a tree search."""
    return -1 if requested == -1 else max(requested or 0, MAX_K)
