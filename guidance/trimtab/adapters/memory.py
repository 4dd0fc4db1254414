"""A tiny engine in memory: a table of next-token logits over characters, under real guidance.

For tests of whatever is written for engines, and to show what an engine must do.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.config import ScorerSpec
from trimtab.description import describe
from trimtab.engine import GenerationRequest, Piece, Sampling, ScorerStatus
from trimtab.errors import InvalidRequest, ScorerRefused, scorer_failed
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.records import spell
from trimtab.rows import Row
from trimtab.scoring.text import PromptContext
from trimtab.search.scoring import score_answers

LETTERS = "\n abcdefghijklmnopqrstuvwxyz.,!?:'0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
STOP = 0
CONTEXT = 512
UNSUPPORTED = (
    *("min_tokens", "top_p", "top_k", "min_p", "stop", "stop_token_ids", "ignore_eos"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logprobs"),
)


class Characters:
    """A tokenizer: a token is a character."""

    chat_template = None

    def encode(self, text: str) -> list[int]:
        """Characters outside LETTERS become spaces."""
        return [max(LETTERS.find(character), 0) or 1 for character in text]

    def decode(self, token_ids: Any, /, *, skip_special_tokens: bool = False) -> str:
        """See Detokenizer."""
        return "".join(LETTERS[int(token)] for token in token_ids)


class MemoryEngine:
    """See trimtab.engine.Engine."""

    model = "memory"
    greeting = GenerationRequest(text="the", sampling=Sampling(max_tokens=4, seed=0))
    patience = 30.0

    def __init__(self, guide: Guide, seed: int = 0) -> None:
        self.guide = guide
        generator = torch.Generator().manual_seed(seed)
        self.table = 2 * torch.randn(len(LETTERS), len(LETTERS), generator=generator)
        self.table[:, STOP] -= 8  # answers are long
        self.tokenizer = Characters()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """See Engine.generate: token by token, all choices in step."""
        prompt = self._prompt(request)
        sampling, params = request.sampling, request.guidance
        scorers = self.guide.registry.pinned(request)
        turns = list(request.turns) if request.turns else None
        context = PromptContext(len(prompt) if request.answer else None, turns)
        prompt += request.answer
        rows = [
            Row(
                params or GuidanceParams(beta=0.0),
                len(prompt),
                stop_token=STOP,
                record_key=f"{request.id}-{index}",
                context=context,
                scorers=scorers,
                max_tokens=sampling.max_tokens,
            )
            for index in range(sampling.n)
        ]
        answers: list[list[int]] = [[] for _ in rows]
        generators = [torch.Generator() for _ in rows]
        for index, generator in enumerate(generators):
            if sampling.seed is None:
                generator.seed()
            else:
                generator.manual_seed(sampling.seed + index)
        left = list(range(sampling.n))
        try:
            while left:
                for index in left:
                    rows[index].prefix = np.array([*prompt, *answers[index]], dtype=np.int64)
                last = [int(rows[index].prefix[-1]) for index in left]
                logits = self.table[torch.tensor(last)].clone()  # [rows, vocab]
                if params is not None and params.said:
                    # The table reads the last token alone, which a principle does not change.
                    for i, index in enumerate(left):
                        rows[index].beside = [len(left) + i] * len(params.said)
                    logits = logits.repeat(2, 1)  # their own, and those beside them
                self.guide.step(logits, [(i, rows[index]) for i, index in enumerate(left)])
                for i, index in enumerate(list(left)):
                    token = _draw(logits[i], sampling.temperature, generators[index])
                    answers[index].append(token)
                    full = len(answers[index]) >= sampling.max_tokens
                    finish = "stop" if token == STOP else "length" if full else None
                    if finish is not None:
                        left.remove(index)
                    trace = None
                    if request.streams_trace:
                        trace = self._steps(rows[index], prompt, answers[index])
                    record = self._record(rows[index], prompt, answers[index], finish, request)
                    text = "" if token == STOP else LETTERS[token]
                    yield Piece(
                        index,
                        text,
                        [token],
                        finish,
                        record,
                        prompt_tokens=len(prompt),
                        trace=trace,
                    )
                await asyncio.sleep(0)
        finally:
            for row in rows:
                self.guide.records.pop(str(row.record_key))

    def _prompt(self, request: GenerationRequest) -> list[int]:
        if request.search is not None:
            raise InvalidRequest("this engine does not search; leave search out.", param="search")
        neutral = Sampling()
        for name in UNSUPPORTED:
            if getattr(request.sampling, name) != getattr(neutral, name):
                raise InvalidRequest(f"this engine does not have {name}; leave it out.", param=name)
        for param, tokens in (
            ("prompt_token_ids", request.token_ids),
            ("answer_token_ids", request.answer),
        ):
            if any(token >= len(LETTERS) for token in tokens or ()):
                raise InvalidRequest(
                    f"a token id is out of the vocabulary, which has {len(LETTERS)} tokens.",
                    param=param,
                )
        if request.token_ids is not None:
            ids = list(request.token_ids)
        else:
            turns = "".join(f"{t['role']}: {t['content']} " for t in request.turns or ())
            ids = self.tokenizer.encode(request.text or turns)
        if len(ids) + len(request.answer) >= CONTEXT:
            raise InvalidRequest(
                f"the prompt has {len(ids)} tokens; expected fewer than {CONTEXT}.", param="prompt"
            )
        return ids

    def _steps(self, row: Row, prompt: list[int], answer: list[int]) -> list[dict[str, Any]] | None:
        """The trace of the answer's last token."""
        key, at = str(row.record_key), len(answer) - 1
        [trace] = self.guide.records.steps(key, prompt, [answer], [at])
        spell(trace, LETTERS.__getitem__)
        return trace

    def _record(
        self,
        row: Row,
        prompt: list[int],
        answer: list[int],
        finish: str | None,
        request: GenerationRequest,
    ) -> dict[str, Any] | None:
        failed = row.fault is not None and row.params.on_error == "fail"
        if failed and row.fault is not None:
            raise scorer_failed(row.fault.scorer, row.fault.message)
        if finish is None or request.guidance is None:
            return None
        report = self.guide.records.report
        [record] = report(str(row.record_key), prompt, [answer], True, timed=request.timed)
        spell((record or {}).get("trace"), LETTERS.__getitem__)
        return record

    async def score(
        self, request: GenerationRequest, answers: Sequence[str]
    ) -> list[dict[str, float]]:
        """See Engine.score."""
        prompt, turns = self._prompt(request), request.turns
        tokens = [[*self.tokenizer.encode(answer), STOP] for answer in answers]
        if len(prompt) + max(map(len, tokens), default=0) > CONTEXT:
            raise InvalidRequest(
                f"a prompt and its answer have more than {CONTEXT} tokens; shorten them."
            )
        params = request.guidance or GuidanceParams(beta=0.0)
        scorers = self.guide.registry.pinned(request)
        return score_answers(self.guide, params, prompt, tokens, turns, scorers)

    async def scorers(self, seconds: float) -> list[ScorerStatus]:
        """See Engine.scorers."""
        return describe(self.guide)

    def problem(self) -> str | None:
        """None: a table is always ready."""
        return None

    async def load(self, version: str, spec: ScorerSpec, root: Path) -> Mapping[str, Any]:
        """Not supported."""
        raise ScorerRefused("this engine does not load scorers while it serves.")

    async def serve(self, name: str, version: str | None) -> None:
        """See Engine.serve."""
        self.guide.registry.serve(name, version)

    async def drop(self, version: str) -> None:
        """See Engine.drop."""
        self.guide.registry.versions.pop(version, None)

    async def close(self) -> None:
        """Nothing to free."""


def _draw(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature < 1e-5:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
