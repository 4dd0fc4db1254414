"""Scores of whole answers on the served engine, which it has not written itself."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from vllm.engine.protocol import EngineClient

from trimtab.adapters.vllm.ranks import first_answer
from trimtab.adapters.vllm.search import row_key, score_arguments
from trimtab.engine import GenerationRequest
from trimtab.errors import TrimtabError, unscored
from trimtab.params import GuidanceParams
from trimtab.scoring.text import PromptContext
from trimtab.search import Score
from trimtab.search.scoring import by_answer
from trimtab_server.vllm import prompts, rpc
from trimtab_server.vllm.records import Exchange
from trimtab_server.vllm.search import numbers

AT_ONCE = 8
"""Answers scored in one call, for which the engine's steps wait."""


async def score_answers(
    engine: EngineClient,
    renderer: Any,
    exchange: Exchange,
    request: GenerationRequest,
    prompt: Any,
    answers: Sequence[str],
) -> list[dict[str, float]]:
    """Each scorer's score of each answer to an engine prompt; see Engine.score.

    exchange: with the versions of its scorers and the prompt's conversation.
    """
    ids = list(prompt["prompt_token_ids"])
    [context] = exchange.contexts or [PromptContext()]
    context = replace(context, length=len(ids))
    tokenizer, end = engine.get_tokenizer(), engine.renderer.get_eos_token_id()
    params, number = request.guidance or GuidanceParams(beta=0.0), next(numbers)
    scores: list[dict[str, float]] = []
    keys: list[int] = []
    try:
        for first in range(0, len(answers), AT_ONCE):
            items = []
            for row, answer in enumerate(answers[first : first + AT_ONCE]):
                own = await asyncio.to_thread(tokenizer.encode, answer, add_special_tokens=False)
                whole = [*ids, *own, *([] if end is None else [end])]
                await prompts.text(renderer, whole[:-1])  # refuses what is too long
                items.append(Score(tuple(whole), row, context))
            own_keys = [row_key(number, item) for item in items]
            keys = sorted({*keys, *own_keys})
            xargs, *rest = score_arguments(params, items, own_keys)
            versions = Exchange(versions=exchange.versions).carried  # the contexts are in the items
            arguments = ({**xargs, **versions}, *rest)
            result = first_answer(await rpc.call(engine, "trimtab_score", *arguments))
            if (error := result["error"]) is not None:
                raise unscored(error["scorer"], error["message"])
            scores += by_answer(result["scores"], len(items))
    finally:
        with suppress(TrimtabError):  # a dead engine has nothing left to forget
            await rpc.call(engine, "trimtab_forget", keys)
    return scores
