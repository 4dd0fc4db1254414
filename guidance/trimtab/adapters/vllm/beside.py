"""The front end's side of principles in vLLM: which engines have them, and what a request carries.

The scheduler (scheduler.py) runs their rows, the worker (shadows.py) reads them.
"""

import json
import logging
from collections.abc import Sequence
from typing import Any

from trimtab import principles
from trimtab.errors import InvalidGuidance
from trimtab.params import GuidanceParams
from trimtab.xargs import BESIDE_KEY

SCHEDULER = "trimtab.adapters.vllm.scheduler.PrincipleScheduler"
STOCK = "this server cannot run principles: only trimtab serve and its offline engine can"
MIN_PROMPT = 2
"""Tokens of a prompt: a member of a group waits with one token left, after at least one."""
served: list[str | None] = [STOCK]
"""Why this process's engine cannot run principles; None if it can."""


def serve(config: Any) -> None:
    """Note whether an engine of this process can run principles, by its VllmConfig.

    vLLM warns of every scheduler that is not its own. Of ours, nobody needs to hear.
    """
    served[0] = problem(config)
    logging.getLogger("vllm.config.scheduler").addFilter(_no_word_of_ours)


def _no_word_of_ours(record: logging.LogRecord) -> bool:
    return SCHEDULER not in record.getMessage()


def problem(config: Any) -> str | None:
    """Why an engine cannot run principles; None if it can."""
    reasons = {
        "decodes with draft tokens": config.num_speculative_tokens > 0,
        "has a scheduler of its own": config.scheduler_config.scheduler_cls != SCHEDULER,
        "schedules by priority": config.scheduler_config.policy != "fcfs",
        "is parallel by pipeline": config.parallel_config.pipeline_parallel_size > 1,
        "moves its K/V between engines": config.kv_transfer_config is not None,
        "runs one request at a time": config.scheduler_config.max_num_seqs < MIN_PROMPT,
    }
    why = next((reason for reason, holds in reasons.items() if holds), None)
    return None if why is None else f"this engine cannot run principles: it {why}"


def check(sampling: Any) -> None:
    """Refuse a request with principles that this process's engine cannot run.

    Raises:
        InvalidGuidance: likewise.
    """
    if served[0] is not None:
        raise InvalidGuidance(
            f"{served[0]}. Leave principles and negative_prompt out.", param="principles"
        )
    if sampling.repetition_penalty != 1.0:
        raise InvalidGuidance(
            "repetition_penalty reads the prompt, so it would count a principle's words; leave it "
            "out, or send frequency_penalty or presence_penalty.",
            param="repetition_penalty",
        )


def carried(
    guidance: GuidanceParams, prompt: Sequence[int] | None, tokenizer: Any, config: Any
) -> dict[str, str]:
    """What a request with principles carries to the scheduler; empty without any.

    Raises:
        InvalidGuidance: there is no room for the principles, or the prompt has no tokens.
    """
    if not guidance.said or not guidance.steers:
        return {}
    if prompt is None or len(prompt) < MIN_PROMPT:
        raise InvalidGuidance(
            f"principles need a prompt of at least {MIN_PROMPT} tokens.", param="principles"
        )
    texts = [one.text for one in guidance.said.values()]
    inserted = [principles.insertion(tokenizer, text, prompt) for text in texts]
    most = config.model_config.max_model_len
    longest = len(prompt) + max(len(ids) for _, ids in inserted)
    if longest >= most:
        raise InvalidGuidance(
            f"a principle and the prompt have {longest} tokens; expected fewer than {most}. "
            "Shorten one of them.",
            param="principles",
        )
    rows, limit = 1 + len(inserted), config.scheduler_config.max_num_seqs
    if rows > limit:
        raise InvalidGuidance(
            f"a request with {len(inserted)} principles takes {rows} rows of the batch, and this "
            f"server has {limit}. Send fewer.",
            param="principles",
        )
    return {BESIDE_KEY: json.dumps(inserted)}
