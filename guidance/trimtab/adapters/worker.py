"""What the front end may ask of a worker, between steps, through `collective_rpc`."""

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.adapters.vllm import GuidanceProcessor
from trimtab.described import describe
from trimtab.params import GuidanceParams
from trimtab.search.scoring import score_sequences


class GuidanceWorker:
    """Worker extension: `--worker-extension-cls trimtab.adapters.worker.GuidanceWorker`."""

    model_runner: Any

    def trimtab_scorers(self) -> list[dict[str, Any]]:
        """What is served, and how it fares."""
        return describe(_processor(self.model_runner).guide)

    def trimtab_record(
        self,
        key: str,
        prompt: Sequence[int],
        outputs: Sequence[Sequence[int]],
        done: bool,
        final: bool = True,
    ) -> list[dict[str, Any] | None]:
        """Records of finished sequences, see Guide.report."""
        return _processor(self.model_runner).guide.report(key, prompt, outputs, done, final)

    def trimtab_score(
        self, xargs: Mapping[str, Any], sequences: Sequence[Sequence[int]], keys: Sequence[int]
    ) -> dict[str, Any]:
        """What whole sequences are worth, see score_sequences; xargs: GuidanceParams, flat."""
        params = GuidanceParams.from_xargs(xargs) or GuidanceParams()
        guide = _processor(self.model_runner).guide
        return score_sequences(guide, params.resolve(guide.scorers), sequences, keys)

    def trimtab_forget(self, keys: Sequence[int]) -> None:
        """Drop what the scorers keep for rows that nobody will ask for again."""
        for scorer in _processor(self.model_runner).guide.scorers.values():
            for key in keys:
                scorer.forget(key)


def _processor(runner: Any) -> GuidanceProcessor:
    if hasattr(runner, "input_batch"):  # V1
        processors = runner.input_batch.logitsprocs.all
    else:
        processors = runner.sampler.logits_processors
    processor: GuidanceProcessor = next(p for p in processors if isinstance(p, GuidanceProcessor))
    if processor.states is None:
        processor.runner = runner
    return processor
