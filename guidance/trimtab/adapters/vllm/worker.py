"""Calls from the front end to a worker, between steps, through `collective_rpc`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab import memory
from trimtab.adapters.vllm.processor import GuidanceProcessor
from trimtab.config import ScorerSpec
from trimtab.description import describe
from trimtab.errors import NoRoom, ScorerRefused
from trimtab.params import GuidanceParams
from trimtab.scoring.text import PromptContext, Turns
from trimtab.search.scoring import score_sequences
from trimtab.xargs import VERSIONS_KEY, from_xargs


class GuidanceWorker:
    """Worker extension: `--worker-extension-cls trimtab.adapters.worker.GuidanceWorker`.

    Of an engine's ranks, the one that has the scorers returns results; the others return None.
    """

    model_runner: Any

    def trimtab_scorers(self) -> list[dict[str, Any]] | None:
        """Status of the scorers."""
        processor = _leader(self.model_runner)
        if processor is None:
            return None
        processor.guide.catch_up()
        return describe(processor.guide)

    def trimtab_record(
        self,
        key: str,
        prompt: Sequence[int],
        outputs: Sequence[Sequence[int]],
        done: bool,
        final: bool = True,
        timed: bool = False,
    ) -> list[dict[str, Any] | None] | None:
        """Records of finished sequences, see Records.report."""
        processor = _leader(self.model_runner)
        if processor is None:
            return None
        return processor.guide.records.report(key, prompt, outputs, done, final, timed)

    def trimtab_steps(
        self,
        key: str,
        prompt: Sequence[int],
        outputs: Sequence[Sequence[int]],
        starts: Sequence[int],
    ) -> list[list[dict[str, Any]] | None] | None:
        """Traces of sequences that grow, see Records.steps."""
        processor = _leader(self.model_runner)
        if processor is None:
            return None
        return processor.guide.records.steps(key, prompt, outputs, starts)

    def trimtab_score(
        self,
        xargs: Mapping[str, Any],
        sequences: Sequence[Sequence[int]],
        keys: Sequence[int],
        contexts: Sequence[tuple[int | None, Turns | None]],
    ) -> dict[str, Any] | None:
        """Scores of whole sequences, see score_sequences.

        xargs: GuidanceParams, flat. contexts: fields of a PromptContext for each sequence.
        """
        processor = _leader(self.model_runner)
        if processor is None:
            return None
        params = from_xargs(xargs) or GuidanceParams()
        scorers = processor.guide.registry.at(xargs.get(VERSIONS_KEY, ""))
        params = params.resolve(scorers)
        prompts = [PromptContext(*fields) for fields in contexts]
        return score_sequences(processor.guide, params, sequences, keys, prompts, scorers)

    def trimtab_refusal(
        self, versions: Sequence[str], conversations: Sequence[Turns]
    ) -> list[str] | None:
        """[name, reason] of a version ("name@2") that cannot read a conversation; [] if all can."""
        processor = _leader(self.model_runner)
        if processor is None:
            return None
        for version in versions:
            name = version.partition("@")[0]
            scorer = processor.guide.registry.at(version).get(name)
            if scorer is None:
                continue
            for turns in conversations:
                reason = scorer.refusal(turns)
                if reason is not None:
                    return [name, reason]
        return []

    def trimtab_forget(self, keys: Sequence[int]) -> None:
        """Drop what the scorers keep for rows that will not be scored again."""
        processor = _leader(self.model_runner)
        if processor is not None:
            processor.guide.registry.forget(keys)

    def trimtab_load(self, version: str, spec: Mapping[str, Any], root: str) -> None:
        """Start to load a version ("name@2") of a scorer; see trimtab_load_status."""
        processor = _leader(self.model_runner)
        if processor is not None:
            processor.load(version, ScorerSpec.model_validate(spec), Path(root))

    def trimtab_load_status(self, version: str) -> dict[str, Any] | None:
        """The load status of a version: {"ready", "error": None or {"type", "message"}, its kind}.

        Once loaded, requests may name it; it is kept until trimtab_drop.
        """
        processor = _leader(self.model_runner)
        if processor is None:
            return None
        load = processor.loads[version]
        if not load.done():
            return {"ready": False, "error": None}
        error = load.exception()
        if error is None:
            scorer = processor.guide.registry.versions[version] = load.result()
            kind = {
                "family": scorer.family,
                "distributional": scorer.distributional,
                "whole": scorer.whole,
                "to_go": scorer.info.to_go,
                "ensemble": scorer.ensemble,
                "reads": scorer.reads,
            }
            return {"ready": True, "error": None, **kind}
        refusal = {
            "type": "ScorerRefused",
            "message": f"it is not loaded ({type(error).__name__}).",
        }
        if isinstance(error, NoRoom | ScorerRefused):
            refusal = {"type": type(error).__name__, "message": error.message}
        return {"ready": True, "error": refusal}

    def trimtab_serve(self, name: str, version: str | None) -> None:
        """Switch a name to a version, or remove the name if `version` is None."""
        processor = _leader(self.model_runner)
        if processor is None:
            return
        processor.guide.registry.serve(name, version)
        if version is not None:
            processor.loads.pop(version, None)

    def trimtab_drop(self, version: str) -> None:
        """Drop a version; rows that use it keep it until they end."""
        processor = _leader(self.model_runner)
        if processor is not None:
            processor.loads.pop(version, None)
            processor.guide.registry.versions.pop(version, None)
            # Otherwise each unloaded scorer leaves some of its memory behind.
            memory.give_back()


def _processor(runner: Any) -> GuidanceProcessor:
    if hasattr(runner, "input_batch"):  # V1
        processors = runner.input_batch.logitsprocs.all
    else:
        processors = runner.sampler.logits_processors
    processor: GuidanceProcessor = next(p for p in processors if isinstance(p, GuidanceProcessor))
    if processor.runner is None:
        processor.attach(runner)
    return processor


def _leader(runner: Any) -> GuidanceProcessor | None:
    """The processor of this rank, if this rank has the scorers."""
    if not hasattr(runner, "input_batch") and runner.sampler is None:
        return None  # V2, at an early stage of pipeline parallelism
    processor = _processor(runner)
    return processor if processor.leads else None
