"""Searches on vLLM's engines: convert its outputs and the worker's results for a search."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.v1.engine.llm_engine import LLMEngine

from trimtab.errors import InvalidGuidance, ScorerFault
from trimtab.params import GuidanceParams
from trimtab.scoring.text import PromptContext
from trimtab.search.core import Drawn, Score, ScoredSequence
from trimtab.search.params import MAX_SEQUENCES
from trimtab.xargs import PROMPT_KEY, to_xargs

TURN = {"role", "content", "tool_calls", "open"}
"""Allowed fields of a conversation's turn."""
FIRST_ROW = 1 << 40
"""First row key of sequences that searches score: far above the keys of decoded rows."""


def carried(context: PromptContext) -> dict[str, str]:
    """A prompt's context, as extra arguments of a request to the worker."""
    return {} if context == PromptContext() else {PROMPT_KEY: json.dumps(astuple(context))}


def read_context(extra: Mapping[str, Any]) -> PromptContext:
    """A prompt's context from extra arguments: the inverse of `carried`.

    Raises:
        InvalidGuidance: malformed; a stock front end let a client write it.
    """
    try:
        length, turns = json.loads(extra.get(PROMPT_KEY, "[null, null]"))
        valid = (length is None or (type(length) is int and length >= 0)) and (
            turns is None or all({"role", "content"} <= set(turn) <= TURN for turn in turns)
        )
    except (TypeError, ValueError, RecursionError):
        valid = False
    if not valid:
        raise InvalidGuidance(f"{PROMPT_KEY} is set by the server; leave it out.")
    return PromptContext(length, turns)


def row_key(search: int, request: Score) -> int:
    """The row key of a sequence, from the number of its search."""
    return FIRST_ROW + search * MAX_SEQUENCES + request.row


def score_arguments(
    params: GuidanceParams, requests: Sequence[Score], keys: Sequence[int]
) -> tuple[Any, ...]:
    """Arguments of GuidanceWorker.trimtab_score."""
    sequences = [list(request.sequence) for request in requests]
    prompts = [astuple(request.context) for request in requests]
    return to_xargs(params), sequences, list(keys), prompts


def scored(result: Mapping[str, Any]) -> list[ScoredSequence]:
    """The scored sequences of its result. Tokens are divided evenly: their sum is exact.

    Raises:
        ScorerFault: a scorer failed.
    """
    if result["error"] is not None:
        raise ScorerFault(
            f"scorer '{result['error']['scorer']}' failed while it scored a search's answers "
            f"({result['error']['message']}). Leave it out.",
            code="scorer_failed",
        )
    count = len(result["values"])
    share, rest = divmod(result["tokens"], count)
    return [
        ScoredSequence(
            value, {name: of[i] for name, of in result["scores"].items()}, share + (i < rest)
        )
        for i, value in enumerate(result["values"])
    ]


def unguided(probes: Collection[str]) -> GuidanceParams:
    """Strength 0 by a probe: draws of the base whose states are kept, for any probe to read."""
    return GuidanceParams(scorers={min(probes): 1.0}, beta=0.0)


def ending(until: str) -> dict[str, Any]:
    """Fields of SamplingParams that end a draw at a text, if there is one.

    A step's mark may be a special token, so they are a part of the text.
    """
    if not until:
        return {"detokenize": False}
    return {"stop": [until], "include_stop_str_in_output": True, "skip_special_tokens": False}


def stop_tokens(engine: EngineClient | LLMEngine) -> frozenset[int]:
    """The tokens that end an answer on this engine, for every request."""
    more = engine.input_processor.generation_config_fields.get("eos_token_id") or ()
    ids = {engine.renderer.get_eos_token_id(), *([more] if isinstance(more, int) else more)}
    return frozenset(ids - {None})


def drawn(output: Any, top: int, record: Any, scorers: int) -> Drawn:
    """The result of a draw, from a finished request with flat log-probabilities.

    record: of its guidance, None if it was not guided. Each of `scorers` scorers read every
    candidate, the uncached part of the prefix, and the tokens of steps with one candidate.
    """
    [choice] = output.outputs
    logprobs = choice.logprobs
    ranked = slice(1, top + 1)  # entry 0 is the drawn token itself
    read = len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
    spent = 0
    if record is not None:
        single = record["steps"] - record["scored_steps"]
        spent = scorers * (read + record["scored_tokens"] + single)
    return Drawn(
        tuple(choice.token_ids),
        choice.finish_reason == "stop" and not isinstance(choice.stop_reason, str),
        list(zip(logprobs.token_ids[ranked], logprobs.logprobs[ranked], strict=True))
        if top
        else (),
        record["kl"] if record is not None else 0.0,
        read,
        spent,
        record["kl_tail"] if record is not None else 0.0,
    )
