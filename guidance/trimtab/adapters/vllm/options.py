"""What every vLLM engine of ours is told, server and offline alike."""

from vllm.platforms import current_platform

from trimtab.params import MAX_K

PROCESSOR = "trimtab.adapters.vllm:GuidanceProcessor"
WORKER = "trimtab.adapters.worker.GuidanceWorker"


def chunked_prefill(asked: bool | None) -> bool | None:
    """Whether prompts may come in chunks: as asked; on the CPU, not unless asked."""
    # vLLM 0.32 dies on the CPU of a seeded request whose prompt comes in chunks: it rewinds the
    # request's random generator, which only CUDA's generators can do.
    return False if asked is None and current_platform.is_cpu() else asked


def logprobs_limit(asked: int | None) -> int:
    """vLLM's max_logprobs: as asked, but enough for the candidates of a tree search."""
    return -1 if asked == -1 else max(asked or 0, MAX_K)
