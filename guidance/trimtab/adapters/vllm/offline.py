"""The frozen base in vLLM's offline engine, in this process, steered if there are scorers.

    sampler = Sampler("path/to/base", {"kindness": "path/to/scorer"})
    answers = sampler.sample([[5, 6, 7]], n=8, seed=0, params=GuidanceParams(beta=2.0))

Every completion has its base log-probabilities and its own seed: the requests that share its batch
affect only rounding.
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
from trimtab.adapters.vllm import beside, pools, unsupported
from trimtab.adapters.vllm.options import PROCESSOR, WORKER, chunked_prefill, logprobs_limit
from trimtab.adapters.vllm.ranks import first_answer
from trimtab.adapters.vllm.search import (
    FIRST_ROW,
    carried,
    drawn,
    ending,
    row_key,
    score_arguments,
    scored,
    stop_tokens,
    unguided,
)
from trimtab.config import GuidanceConfig
from trimtab.errors import InvalidGuidance, ScorerFault, TrimtabError
from trimtab.loading import precheck
from trimtab.params import GuidanceParams
from trimtab.reasons import brief, collect_reason
from trimtab.sampling import Completion, SamplingRequest, log_ratios, sample_seed
from trimtab.scoring.text import PromptContext
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
from trimtab.xargs import RECORD_KEY, to_xargs

SCORER_SECONDS = 600.0
"""Maximum seconds of a scorer per step: long, because no client waits."""
WAITING = 1024
"""Maximum requests in the engine at a time: enough to fill any batch."""


def engine_options(flags: Sequence[str]) -> dict[str, Any]:
    """vLLM's own engine flags, as on its command line → options of a Sampler."""
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(prog="trimtab rollout MODEL"))
    options = vars(parser.parse_args(list(flags)))
    # Do not build EngineArgs yet: that looks up its default model on the hub.
    names = {field.name for field in fields(EngineArgs)} - {"model"}
    return {name: value for name, value in options.items() if name in names}


class Sampler:
    """A base model, and scorers to steer it.

    Args:
        model: directory or hub name of the base.
        scorers: name → path, or the fields of a trimtab.config.ScorerSpec.
        options: vLLM's engine options, such as dtype="float32".

    Raises:
        TrimtabError: the model or the scorers do not load, or do not work with the options.
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
            name: {"path": spec} if isinstance(spec, str) else dict(spec)
            for name, spec in (scorers or {}).items()
        }
        if self.scorers:
            unsupported.check_options(options)
            section = {"scorers": self.scorers, "scorer_timeout": SCORER_SECONDS}
            config = GuidanceConfig.parse({"trimtab": section})
            precheck(config)
            options["logits_processors"] = [PROCESSOR]
            options["worker_extension_cls"] = WORKER
            options["scheduler_cls"] = options.get("scheduler_cls") or beside.SCHEDULER
            options["additional_config"] = {"trimtab": config.model_dump(exclude_none=True)}
        with orphans.owned(), collect_reason() as reason:
            try:
                pools.fit_options(model, options)
                self.llm = LLM(model, **options)
            except (OSError, ValueError, RuntimeError) as error:
                other = f"the engine cannot start with {model}: {brief(error)}"
                raise TrimtabError(reason() or other) from error
        self.engine = self.llm.llm_engine
        beside.serve(self.engine.vllm_config)
        self.tokenizer: Any = self.llm.get_tokenizer()
        self.max_length: int = self.llm.model_config.max_model_len
        self.distributional: dict[str, bool] = {}
        self.probes: set[str] = set()
        self.to_go: set[str] = set()
        if self.scorers:
            # This also sets the processor's runner.
            statuses = first_answer(self.engine.collective_rpc("trimtab_scorers"))
            self.distributional = {one["name"]: one["distributional"] for one in statuses}
            self.probes = {one["name"] for one in statuses if one["reads"] == "states"}
            self.to_go = {one["name"] for one in statuses if one["to_go"]}
        self._runs = 0
        # Loaded objects stay: exclude them from garbage collection.
        gc.freeze()

    def strength(self, params: GuidanceParams | None) -> float | None:
        """The c for which guided answers follow π0·exp(c·R)/Z; None if there is none.

        There is one if the only scorer used has return distributions: its strength β·w.
        """
        if params is None or params.planned:
            return None
        if params.said:
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
            SamplingRequest((p, i), ids, sample_seed(seed, p, i), max_tokens)
            for p, ids in enumerate(prompts)
            for i in range(n)
        ]
        stream = self.stream(requests, temperature=temperature, top_p=top_p, params=params)
        completions = dict(stream)
        return [[completions[p, i] for i in range(n)] for p in range(len(prompts))]

    def stream(
        self,
        requests: Iterable[SamplingRequest],
        *,
        temperature: float,
        top_p: float = 1.0,
        params: GuidanceParams | None = None,
    ) -> Iterator[tuple[Any, Completion]]:
        """(key, completion) of each request as it ends; requests are read when there is room.

        Raises:
            InvalidGuidance: params without scorers, or a request above the model's length.
            ScorerFault: a scorer failed.
        """
        for key, output in self._run(requests, temperature, top_p, params):
            [choice] = output.outputs
            record = self._record(output) if params is not None else None
            tokens, logprobs = list(choice.token_ids), list(choice.logprobs.logprobs)
            if record is None:
                yield key, Completion(tokens, logprobs)
                continue
            ratios = log_ratios(record.get("trace", ()))
            yield key, Completion(tokens, logprobs, record["kl"], ratios, record["kl_tail"])

    def steps(
        self, prefixes: Sequence[Sequence[int]], params: GuidanceParams
    ) -> list[Mapping[str, Any]]:
        """The guided distribution after each prefix of token ids, as a step of a trace.

        A step is empty where guidance had nothing to choose.

        Raises:
            as `stream`.
        """
        traced = params.model_copy(update={"trace": True})
        requests = [SamplingRequest(i, ids, 0, 1) for i, ids in enumerate(prefixes)]
        steps: dict[int, Mapping[str, Any]] = {}
        for i, output in self._run(requests, 1.0, 1.0, traced):
            steps[i] = next(iter(self._record(output)["trace"]), {})
        return [steps[i] for i in range(len(prefixes))]

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
        """Search for an answer to each prompt of token ids; all prompts advance together.

        params: scorers and strength β; default: every scorer, β = 0.

        Raises:
            as `stream`.
        """
        guidance = self._resolve(params)
        search.check(guidance, temperature)
        search.check_scorers(guidance, self.to_go)
        stops = stop_tokens(self.engine)
        for prompt in prompts:
            self._check_length(prompt, max_tokens)
        used: set[int] = set()  # row keys in the scorers' caches

        def draw(batch: list[Draw]) -> list[Drawn]:
            requests = [
                SamplingRequest(i, one.prefix, one.seed, one.max_tokens, one.context)
                for i, one in enumerate(batch)
            ]
            guided = guidance if batch[0].guided else None
            top = min(batch[0].top, self.llm.model_config.get_vocab_size())
            results: dict[int, Drawn] = {}
            until = batch[0].until
            for i, output in self._run(requests, temperature, top_p, guided, top, until):
                record = self._record(output) if guided else None
                reading = set(guidance.scorers or ()) - self.probes
                results[i] = drawn(output, top, record, len(reading))
            return [results[i] for i in range(len(batch))]

        def score(batch: list[tuple[int, Score]]) -> list[ScoredSequence]:
            keys = [row_key(i, request) for i, request in batch]
            used.update(keys)
            return self._score([request for _, request in batch], guidance, keys)

        searches = [
            start(search, Problem(tuple(ids), max_tokens, stops, guidance, seed, p))
            for p, ids in enumerate(prompts)
        ]
        try:
            return drive(searches, draw, score)
        finally:
            self.engine.collective_rpc("trimtab_forget", args=(list(used),))

    def score(
        self,
        sequences: Sequence[Sequence[int]],
        params: GuidanceParams | None = None,
        lengths: Sequence[int] | None = None,
    ) -> list[ScoredSequence]:
        """Scores of whole sequences of token ids, prompts included.

        lengths: tokens of each one's prompt, if known. A probe scores only what this engine has
        sampled not long ago, with this prompt: the states of other texts are not computed again.

        Raises:
            InvalidGuidance: the sampler has no scorers, or a sequence has fewer than two tokens.
            ScorerFault: a scorer failed.
        """
        if any(len(sequence) < 2 for sequence in sequences):
            raise InvalidGuidance("a sequence to score must have at least two tokens.")
        keys = [FIRST_ROW + row for row in range(len(sequences))]
        try:
            prompts = [PromptContext()] * len(sequences)
            if lengths is not None:
                prompts = [PromptContext(length) for length in lengths]
            pairs = enumerate(zip(sequences, prompts, strict=True))
            requests = [Score(tuple(ids), row, prompt) for row, (ids, prompt) in pairs]
            return self._score(requests, self._resolve(params), keys)
        finally:
            self.engine.collective_rpc("trimtab_forget", args=(keys,))

    def _resolve(self, params: GuidanceParams | None) -> GuidanceParams:
        if not self.scorers:
            raise InvalidGuidance("a search needs scorers, but the sampler has no scorers.")
        return (params or GuidanceParams(beta=0.0)).resolve(list(self.scorers))

    def _score(
        self, requests: Sequence[Score], params: GuidanceParams, keys: Sequence[int]
    ) -> list[ScoredSequence]:
        arguments = score_arguments(params, requests, keys)
        return scored(first_answer(self.engine.collective_rpc("trimtab_score", args=arguments)))

    def _run(
        self,
        requests: Iterable[SamplingRequest],
        temperature: float,
        top_p: float,
        params: GuidanceParams | None,
        top: int = 0,
        until: str = "",
    ) -> Iterator[tuple[Any, Any]]:
        """(key, vLLM's output) of each request as it ends."""
        if params is not None and not self.scorers:
            raise InvalidGuidance("guidance needs scorers, but the sampler has no scorers.")
        self._runs += 1
        left, running = iter(requests), dict[str, SamplingRequest]()
        count = 0
        try:
            while True:
                for request in islice(left, WAITING - len(running)):
                    name = f"{self._runs}-{count}"
                    count += 1
                    self._add(name, request, temperature, top_p, params, top, until)
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
        request: SamplingRequest,
        temperature: float,
        top_p: float,
        params: GuidanceParams | None,
        top: int,
        until: str,
    ) -> None:
        self._check_length(request.prompt_token_ids, request.max_tokens)
        guided: dict[str, Any] = {}
        if params is not None:
            ids, config = request.prompt_token_ids, self.engine.vllm_config
            guided = {**to_xargs(params), RECORD_KEY: name, **carried(request.context)}
            guided |= beside.carried(params, ids, self.tokenizer, config)
        elif self.probes:
            # Unguided, but the base's states are kept: probes may score what was sampled.
            guided = {**to_xargs(unguided(self.probes)), **carried(request.context)}
        sampling = SamplingParams(
            temperature=temperature,
            top_p=top_p,
            max_tokens=request.max_tokens,
            seed=request.seed,
            logprobs=top,  # and the sampled token's own, all from the base's unchanged logits
            flat_logprobs=True,
            extra_args=guided or None,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **ending(until),
        )
        self.engine.add_request(
            name, {"prompt_token_ids": list(request.prompt_token_ids)}, sampling
        )

    def _check_length(self, prompt: Sequence[int], max_tokens: int) -> None:
        if len(prompt) + max_tokens > self.max_length:
            raise InvalidGuidance(
                f"a prompt of {len(prompt)} tokens and {max_tokens} to sample are more than the "
                f"model's maximum of {self.max_length}."
            )

    def _record(self, output: Any) -> dict[str, Any]:
        """The guidance record of a finished request, without final scores."""
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
