"""The frozen base in vLLM's offline engine, in this process, steered if there are scorers.

    sampler = Sampler("path/to/base", {"kindness": "path/to/scorer"})
    answers = sampler.sample([[5, 6, 7]], n=8, seed=0, params=GuidanceParams(beta=2.0))

Every completion comes with its base log-probabilities, and has a seed of its own: which requests
share a batch decides nothing but rounding.
"""

import gc
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.utils.argparse_utils import FlexibleArgumentParser

from trimtab.adapters.engine import PROCESSOR, WORKER, chunked_prefill
from trimtab.config import GuidanceConfig
from trimtab.draws import Completion, Request, sample_seed
from trimtab.errors import InvalidGuidance, ScorerFault, TrimtabError
from trimtab.params import RECORD_KEY, GuidanceParams

WAITING = 1024
"""Requests in the engine at a time: enough to keep any batch full."""


def engine_options(flags: Sequence[str]) -> dict[str, Any]:
    """vLLM's own engine flags, as on its command line → options of a Sampler."""
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(prog="trimtab rollout MODEL"))
    options = vars(EngineArgs.from_cli_args(parser.parse_args(list(flags))))
    return {name: value for name, value in options.items() if name != "model"}


class Sampler:
    """A base model, and scorers to steer it.

    Args:
        model: directory or hub name of the base.
        scorers: name → path, or the fields of a trimtab.config.ScorerSpec.
        options: vLLM's engine options, such as dtype="float32".

    Raises:
        TrimtabError: the model or the scorers do not load.
    """

    def __init__(
        self,
        model: str,
        scorers: Mapping[str, str | Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        options["enable_chunked_prefill"] = chunked_prefill(options.get("enable_chunked_prefill"))
        self.scorers = {
            name: {"path": given} if isinstance(given, str) else dict(given)
            for name, given in (scorers or {}).items()
        }
        if self.scorers:
            config = GuidanceConfig.parse({"trimtab": {"scorers": self.scorers}})
            options["logits_processors"] = [PROCESSOR]
            options["worker_extension_cls"] = WORKER
            options["additional_config"] = {"trimtab": config.model_dump(exclude_none=True)}
        try:
            self.llm = LLM(model, **options)
        except (OSError, ValueError) as error:
            raise TrimtabError(f"the engine cannot start with {model}: {error}") from error
        self.engine = self.llm.llm_engine
        self.tokenizer: Any = self.llm.get_tokenizer()
        self.max_length: int = self.llm.model_config.max_model_len
        if self.scorers:
            self.engine.collective_rpc("trimtab_scorers")  # shows the processor its runner
        self._runs = 0
        # What is loaded by now stays; the collector need not walk through it at every turn.
        gc.freeze()

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
                    self._add(name, request, temperature, top_p, params)
                    running[name] = request
                if not running:
                    return
                for output in self.engine.step():
                    if output.finished:
                        request = running.pop(output.request_id)
                        yield request.key, self._completion(output, params is not None)
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
    ) -> None:
        length = len(request.prompt_token_ids) + request.max_tokens
        if length > self.max_length:
            raise InvalidGuidance(
                f"a prompt of {len(request.prompt_token_ids)} tokens and {request.max_tokens} to "
                f"draw are more than the {self.max_length} that the model reads."
            )
        guided = {} if params is None else {**params.to_xargs(), RECORD_KEY: name}
        sampling = SamplingParams(
            temperature=temperature,
            top_p=top_p,
            max_tokens=request.max_tokens,
            seed=request.seed,
            logprobs=0,  # the sampled token's alone, from the base's untouched logits
            flat_logprobs=True,
            detokenize=False,
            extra_args=guided or None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self.engine.add_request(
            name, {"prompt_token_ids": list(request.prompt_token_ids)}, sampling
        )

    def _completion(self, output: Any, guided: bool) -> Completion:
        [drawn] = output.outputs
        ids, kl = list(drawn.token_ids), 0.0
        if guided:
            arguments = (output.request_id, output.prompt_token_ids, [ids], True)
            [[record]] = self.engine.collective_rpc("trimtab_record", args=arguments)[:1]
            if record is None or record["error"] is not None:
                fault = (record or {}).get("error") or {"scorer": "?", "message": "left no record"}
                raise ScorerFault(f"scorer {fault['scorer']}: {fault['message']}.")
            kl = record["kl"]
        return Completion(ids, list(drawn.logprobs.logprobs), kl)
