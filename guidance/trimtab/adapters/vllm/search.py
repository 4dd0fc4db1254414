"""Searches on vLLM's engines: its outputs and the worker's answers, as a search wants them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from vllm.engine.protocol import EngineClient
from vllm.v1.engine.llm_engine import LLMEngine

from trimtab.errors import InvalidGuidance, ScorerFault
from trimtab.params import PROMPT_KEY, GuidanceParams
from trimtab.scoring.text import PromptContext
from trimtab.search.core import Drawn, Score, ScoredSequence
from trimtab.search.params import MAX_SEQUENCES

TURN = {"role", "content", "tool_calls", "open"}
"""What a turn of a conversation may have."""
FIRST_ROW = 1 << 40
"""Row keys of sequences that searches score: far above those of the rows being decoded."""


def carried(known: PromptContext) -> dict[str, str]:
    """What is told of a prompt, as a request's extra arguments carry it to the worker."""
    return {} if known == PromptContext() else {PROMPT_KEY: json.dumps(astuple(known))}


def read_context(extra: Mapping[str, Any]) -> PromptContext:
    """What extra arguments tell of a prompt: the inverse of `carried`.

    Raises:
        InvalidGuidance: a stock front end let somebody else write it.
    """
    try:
        length, turns = json.loads(extra.get(PROMPT_KEY, "[null, null]"))
        well = (length is None or (type(length) is int and length >= 0)) and (
            turns is None or all({"role", "content"} <= set(turn) <= TURN for turn in turns)
        )
    except (TypeError, ValueError, RecursionError):
        well = False
    if not well:
        raise InvalidGuidance(f"{PROMPT_KEY} is set by the server; leave it out.")
    return PromptContext(length, turns)


def row_key(search: int, ask: Score) -> int:
    """The scorers' row of a sequence, given the number of its search."""
    return FIRST_ROW + search * MAX_SEQUENCES + ask.row


def score_arguments(
    params: GuidanceParams, asks: Sequence[Score], keys: Sequence[int]
) -> tuple[Any, ...]:
    """What GuidanceWorker.trimtab_score is called with."""
    sequences = [list(ask.sequence) for ask in asks]
    prompts = [astuple(ask.context) for ask in asks]
    return params.to_xargs(), sequences, list(keys), prompts


def scored(answer: Mapping[str, Any]) -> list[ScoredSequence]:
    """Its answer. The tokens are shared out evenly: their sum is exact.

    Raises:
        ScorerFault: a scorer failed.
    """
    if answer["error"] is not None:
        raise ScorerFault(
            f"scorer '{answer['error']['scorer']}' failed while it scored a search's answers "
            f"({answer['error']['message']}). Leave it out.",
            code="scorer_failed",
        )
    count = len(answer["values"])
    share, rest = divmod(answer["tokens"], count)
    return [
        ScoredSequence(
            value, {name: of[i] for name, of in answer["scores"].items()}, share + (i < rest)
        )
        for i, value in enumerate(answer["values"])
    ]


def stop_tokens(engine: EngineClient | LLMEngine) -> frozenset[int]:
    """The tokens that end an answer of this engine, whatever the request."""
    more = engine.input_processor.generation_config_fields.get("eos_token_id") or ()
    ids = {engine.renderer.get_eos_token_id(), *([more] if isinstance(more, int) else more)}
    return frozenset(ids - {None})


def drawn(output: Any, top: int, record: Any, scorers: int) -> Drawn:
    """A draw's answer out of a finished request with flat log-probabilities.

    record: of its guidance by `scorers` scorers, None if it was not guided. Each candidate went
    through each of them, and so did the prefix that no cache had, and the tokens of steps without
    a choice.
    """
    [choice] = output.outputs
    found = choice.logprobs
    ranked = slice(1, top + 1)  # entry 0 is the drawn token itself
    read = len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
    spent = 0
    if record is not None:
        alone = record["steps"] - record["scored_steps"]
        spent = scorers * (read + record["scored_tokens"] + alone)
    return Drawn(
        tuple(choice.token_ids),
        choice.finish_reason == "stop",
        list(zip(found.token_ids[ranked], found.logprobs[ranked], strict=True)) if top else (),
        record["kl"] if record is not None else 0.0,
        read,
        spent,
    )
