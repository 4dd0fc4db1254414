"""Sample on many machines: the interface of a Sampler, with an engine in each of several actors."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from trimtab.params import GuidanceParams
from trimtab.sampling import Completion, SamplingRequest
from trimtab_lab import actors
from trimtab_models import pretrained

CHUNK = 256
"""Answers of one task. Those of a killed actor are sampled again, with the same seeds."""


class RemoteSampler:
    """A base model in Ray actors, and scorers to steer it.

    Args:
        address, count, gpus: see `trimtab_lab.actors.pool`.
        model, scorers, options: see trimtab.adapters.vllm.offline.Sampler. The base and the scorers
            must have the same names on every machine.

    Raises:
        StartError: there is no such cluster, or it is too small.
        TrimtabError: the model or the scorers do not load.
    """

    def __init__(
        self,
        address: str,
        model: str,
        scorers: Mapping[str, Any],
        options: Mapping[str, Any],
        count: int | None = None,
    ) -> None:
        sizes = ("tensor_parallel_size", "pipeline_parallel_size")
        gpus = (options.get(sizes[0]) or 1) * (options.get(sizes[1]) or 1)
        build = partial(_engine, model, dict(scorers), dict(options))
        self._pool, self._count = actors.pool(address, build, count, gpus)
        self.tokenizer: Any = pretrained.tokenizer(model)
        for _ in range(self._count):  # all engines start at once
            self._pool.submit(actors.call, (_max_length, None))
        self.max_length = min(actors.result(self._pool) for _ in range(self._count))

    def strength(self, params: GuidanceParams | None) -> float | None:
        """As `Sampler.strength`."""
        strength: float | None = self._ask(_strength, params)
        return strength

    def stream(
        self,
        requests: Iterable[SamplingRequest],
        *,
        temperature: float,
        top_p: float = 1.0,
        params: GuidanceParams | None = None,
    ) -> Iterator[tuple[Any, Completion]]:
        """As `Sampler.stream`; completions arrive a chunk at a time."""
        settings = {"temperature": temperature, "top_p": top_p, "params": params}
        left = iter(requests)
        running = 0
        while True:
            while running < self._count and (chunk := list(islice(left, CHUNK))):
                self._pool.submit(actors.call, (_sample, (chunk, settings)))
                running += 1
            if not running:
                return
            completions = actors.result(self._pool)
            running -= 1
            yield from completions

    def _ask(self, work: Any, task: Any) -> Any:
        self._pool.submit(actors.call, (work, task))
        return actors.result(self._pool)


def _engine(model: str, scorers: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    from trimtab.logs import configure_logging

    configure_logging()
    from trimtab.adapters.vllm.offline import Sampler

    return Sampler(model, scorers, **options)


def _max_length(sampler: Any, _: None) -> int:
    return int(sampler.max_length)


def _strength(sampler: Any, params: GuidanceParams | None) -> float | None:
    strength: float | None = sampler.strength(params)
    return strength


def _sample(
    sampler: Any, task: tuple[Sequence[SamplingRequest], Mapping[str, Any]]
) -> list[tuple[Any, Completion]]:
    requests, settings = task
    return list(sampler.stream(requests, **settings))
