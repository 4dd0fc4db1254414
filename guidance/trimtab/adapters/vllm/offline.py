"""The frozen base in vLLM's offline engine, in this process, steered if there are scorers.

    sampler = Sampler("path/to/base", {"kindness": "path/to/scorer"})
    answers = sampler.sample([[5, 6, 7]], n=8, seed=0, params=GuidanceParams(beta=2.0))

Every completion comes with its base log-probabilities, and has a seed of its own: which requests
share a batch decides nothing but rounding.
"""

import gc
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from typing import Any

from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.utils.argparse_utils import FlexibleArgumentParser

from trimtab import orphans
from trimtab.adapters.vllm import unsupported
from trimtab.adapters.vllm.options import PROCESSOR, WORKER, chunked_prefill, logprobs_limit
from trimtab.adapters.vllm.ranks import first_answer
from trimtab.adapters.vllm.search import (
    FIRST_ROW,
    carried,
    drawn,
    row_key,
    score_arguments,
    scored,
    stop_tokens,
)
from trimtab.config import GuidanceConfig
from trimtab.errors import InvalidGuidance, ScorerFault, TrimtabError
from trimtab.loading import vet
from trimtab.params import RECORD_KEY, GuidanceParams
from trimtab.reasons import brief, collect_reason
from trimtab.sampling import Completion, Request, log_ratios, sample_seed
from trimtab.search import (
    Draw,
    Drawn,
    Problem,
    Result,
    Score,
    ScoredSequence,
    SearchParams,
    drive,
    start,
)

SCORER_SECONDS = 600.0
"""Seconds that a scorer may take for a step: nobody waits, but a run should end some day."""
WAITING = 1024
"""Requests in the engine at a time: enough to keep any batch full."""


def engine_options(flags: Sequence[str]) -> dict[str, Any]:
    """vLLM's own engine flags, as on its command line → options of a Sampler."""
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(prog="trimtab rollout MODEL"))
    given = vars(parser.parse_args(list(flags)))
    # No EngineArgs is made of them yet: offline, that looks up its default model on the hub.
    names = {field.name for field in fields(EngineArgs)} - {"model"}
    return {name: value for name, value in given.items() if name in names}


class Sampler:
    """A base model, and scorers to steer it.

    Args:
        model: directory or hub name of the base.
        scorers: name → path, or the fields of a trimtab.config.ScorerSpec.
        options: vLLM's engine options, such as dtype="float32".

    Raises:
        TrimtabError: the model or the scorers do not load, or do not go with the options.
    """

    def __init__(
        self,
        model: str,
        scorers: Mapping[str, str | Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        options["enable_chunked_prefill"] = chunked_prefill(options.get("enable_chunked_prefill"))
        options["max_logprobs"] = logprobs_limit(options.get("max_logprobs"))
        self.scorers = {
            name: {"path": given} if isinstance(given, str) else dict(given)
            for name, given in (scorers or {}).items()
        }
        if self.scorers:
            unsupported.check_options(options)
            section = {"scorers": self.scorers, "scorer_timeout": SCORER_SECONDS}
            config = GuidanceConfig.parse({"trimtab": section})
            vet(config)
            options["logits_processors"] = [PROCESSOR]
            options["worker_extension_cls"] = WORKER
            options["additional_config"] = {"trimtab": config.model_dump(exclude_none=True)}
        with orphans.owned(), collect_reason() as reason:
            try:
                self.llm = LLM(model, **options)
            except (OSError, ValueError, RuntimeError) as error:
                other = f"the engine cannot start with {model}: {brief(error)}"
                raise TrimtabError(reason() or other) from error
        self.engine = self.llm.llm_engine
        self.tokenizer: Any = self.llm.get_tokenizer()
        self.max_length: int = self.llm.model_config.max_model_len
        self.distributional: dict[str, bool] = {}
        if self.scorers:
            # This also shows the processor its runner.
            found = first_answer(self.engine.collective_rpc("trimtab_scorers"))
            self.distributional = {one["name"]: one["distributional"] for one in found}
        self._runs = 0
        # What is loaded by now stays; the collector need not walk through it at every turn.
        gc.freeze()

    def strength(self, params: GuidanceParams | None) -> float | None:
        """The c of π0·exp(c·R)/Z that guided answers come from; None unless soft values guide.

        That is: one return distribution of its own strength β·w, with nothing else beside it.
        """
        if params is None or params.kl_budget is not None or params.floors is not None:
            return None
        resolved = params.resolve(list(self.distributional))
        used = {name: w for name, w in (resolved.scorers or {}).items() if w != 0}
        if [self.distributional[name] for name in used] != [True] or params.normalize:
            return None
        return params.beta * next(iter(used.values()))

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        *,
        seed: int,
        temperature: float = 0.7,
        top_p: float = 1.0,
        max_tokens: int = 256,
        params: GuidanceParams | None = None,
    ) -> list[list[Completion]]:
        """n completions of each prompt of token ids, [prompts][n]; guided if params are given.

        Raises:
            as `stream`.
        """
        requests = [
            Request((p, i), ids, sample_seed(seed, p, i), max_tokens)
            for p, ids in enumerate(prompts)
            for i in range(n)
        ]
        drawn = dict(self.stream(requests, temperature=temperature, top_p=top_p, params=params))
        return [[drawn[p, i] for i in range(n)] for p in range(len(prompts))]

    def stream(
        self,
        requests: Iterable[Request],
        *,
        temperature: float,
        top_p: float = 1.0,
        params: GuidanceParams | None = None,
    ) -> Iterator[tuple[Any, Completion]]:
        """(key, completion) of each request, as they end; requests are taken as there is room.

        Raises:
            InvalidGuidance: params without scorers, or a request longer than the model reads.
            ScorerFault: a scorer failed.
        """
        for key, output in self._run(requests, temperature, top_p, params):
            [choice] = output.outputs
            record = self._record(output) if params is not None else None
            kl = record["kl"] if record is not None else 0.0
            ratios = log_ratios((record or {}).get("trace", ()))
            yield (
                key,
                Completion(list(choice.token_ids), list(choice.logprobs.logprobs), kl, ratios),
            )

    def search(
        self,
        prompts: Sequence[Sequence[int]],
        search: SearchParams,
        *,
        seed: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 256,
        params: GuidanceParams | None = None,
    ) -> list[Result]:
        """Search an answer to each prompt of token ids; all prompts advance together.

        params: which scorers, and the strength β; every scorer at β = 0 if absent.

        Raises:
            as `stream`.
        """
        guidance = self._resolve(params)
        search.check(guidance, temperature)
        stops = stop_tokens(self.engine)
        for prompt in prompts:
            self._check_length(prompt, max_tokens)
        used: set[int] = set()  # rows of the scorers' caches

        def draw(asks: list[Draw]) -> list[Drawn]:
            requests = [
                Request(i, ask.prefix, ask.seed, ask.max_tokens, ask.context)
                for i, ask in enumerate(asks)
            ]
            guided = guidance if asks[0].guided else None
            top = min(asks[0].top, self.llm.model_config.get_vocab_size())
            answers: dict[int, Drawn] = {}
            for i, output in self._run(requests, temperature, top_p, guided, top):
                record = self._record(output) if guided else None
                answers[i] = drawn(output, top, record, len(guidance.scorers or ()))
            return [answers[i] for i in range(len(asks))]

        def score(asks: list[tuple[int, Score]]) -> list[ScoredSequence]:
            keys = [row_key(i, ask) for i, ask in asks]
            used.update(keys)
            return self._score([ask for _, ask in asks], guidance, keys)

        searches = [
            start(search, Problem(tuple(ids), max_tokens, stops, guidance, seed, p))
            for p, ids in enumerate(prompts)
        ]
        try:
            return drive(searches, draw, score)
        finally:
            self.engine.collective_rpc("trimtab_forget", args=(list(used),))

    def score(
        self, sequences: Sequence[Sequence[int]], params: GuidanceParams | None = None
    ) -> list[ScoredSequence]:
        """What whole sequences of token ids are worth to the scorers, prompts included.

        Raises:
            InvalidGuidance: the sampler has no scorers, or a sequence has fewer than two tokens.
            ScorerFault: a scorer failed.
        """
        if any(len(sequence) < 2 for sequence in sequences):
            raise InvalidGuidance("a sequence to score must have at least two tokens.")
        keys = [FIRST_ROW + row for row in range(len(sequences))]
        try:
            asks = [Score(tuple(ids), row) for row, ids in enumerate(sequences)]
            return self._score(asks, self._resolve(params), keys)
        finally:
            self.engine.collective_rpc("trimtab_forget", args=(keys,))

    def _resolve(self, params: GuidanceParams | None) -> GuidanceParams:
        if not self.scorers:
            raise InvalidGuidance("a search was asked for, but the sampler has no scorers.")
        return (params or GuidanceParams(beta=0.0)).resolve(list(self.scorers))

    def _score(
        self, asks: Sequence[Score], params: GuidanceParams, keys: Sequence[int]
    ) -> list[ScoredSequence]:
        arguments = score_arguments(params, asks, keys)
        return scored(first_answer(self.engine.collective_rpc("trimtab_score", args=arguments)))

    def _run(
        self,
        requests: Iterable[Request],
        temperature: float,
        top_p: float,
        params: GuidanceParams | None,
        top: int = 0,
    ) -> Iterator[tuple[Any, Any]]:
        """(key, vLLM's output) of each request, as they end."""
        if params is not None and not self.scorers:
            raise InvalidGuidance("guidance was asked for, but the sampler has no scorers.")
        self._runs += 1
        left, running = iter(requests), dict[str, Request]()
        count = 0
        try:
            while True:
                for request in islice(left, WAITING - len(running)):
                    name = f"{self._runs}-{count}"
                    count += 1
                    self._add(name, request, temperature, top_p, params, top)
                    running[name] = request
                if not running:
                    return
                for output in self.engine.step():
                    if output.finished:
                        yield running.pop(output.request_id).key, output
        finally:
            if running:
                self.engine.abort_request(list(running))

    def _add(
        self,
        name: str,
        request: Request,
        temperature: float,
        top_p: float,
        params: GuidanceParams | None,
        top: int,
    ) -> None:
        self._check_length(request.prompt_token_ids, request.max_tokens)
        guided: dict[str, Any] = {}
        if params is not None:
            guided = {**params.to_xargs(), RECORD_KEY: name, **carried(request.context)}
        sampling = SamplingParams(
            temperature=temperature,
            top_p=top_p,
            max_tokens=request.max_tokens,
            seed=request.seed,
            logprobs=top,  # and the sampled token's own, all from the base's untouched logits
            flat_logprobs=True,
            detokenize=False,
            extra_args=guided or None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self.engine.add_request(
            name, {"prompt_token_ids": list(request.prompt_token_ids)}, sampling
        )

    def _check_length(self, prompt: Sequence[int], max_tokens: int) -> None:
        if len(prompt) + max_tokens > self.max_length:
            raise InvalidGuidance(
                f"a prompt of {len(prompt)} tokens and {max_tokens} to draw are more than the "
                f"{self.max_length} that the model reads."
            )

    def _record(self, output: Any) -> dict[str, Any]:
        """What guidance did to a finished request; nobody asks for its final scores."""
        [choice] = output.outputs
        ids = list(choice.token_ids)
        arguments = (output.request_id, output.prompt_token_ids, [ids], True, False)
        [record] = first_answer(self.engine.collective_rpc("trimtab_record", args=arguments))
        if record is None or record["error"] is not None:
            fault = (record or {}).get("error") or {"scorer": "?", "message": "left no record"}
            raise ScorerFault(f"scorer {fault['scorer']}: {fault['message']}.")
        if record.get("trace", ()) is None:
            raise TrimtabError(
                "the traces of all running answers take too much memory; run fewer at a time, with "
                "vLLM's --max-num-seqs, or lower k or mass."
            )
        return record
