"""One logits processor for both of vLLM's model runners.

    vllm serve MODEL --logits-processors trimtab.adapters.vllm:GuidanceProcessor \\
        --worker-extension-cls trimtab.adapters.worker.GuidanceWorker \\
        --additional-config '{"trimtab": {"scorers": {"kindness": {"path": "..."}}}}'

The V1 runner (CPU) reports rows as events, with their tokens as lists; Model Runner V2 (GPU)
reorders rows each step and keeps their tokens on the device. Both are converted to `Row`s here.
`apply`, `update_state` and `add_request` never raise: an exception would end the engine for
everyone.
"""

import logging
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.layers.logits_processor import LogitsProcessor as LogitsModule
from vllm.sampling_params import SamplingParams
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor import LogitsProcessor as V1LogitsProcessor
from vllm.v1.sample.logits_processor import MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2LogitsProcessor

from trimtab import drafts, hot_loading, orphans, reasons
from trimtab.adapters.vllm import beside, pools, prefixes, ranks, unsupported
from trimtab.adapters.vllm.search import read_context
from trimtab.adapters.vllm.shadows import Seeds, Shadows, move
from trimtab.choice import Choices
from trimtab.config import GuidanceConfig, ScorerSpec
from trimtab.errors import InvalidGuidance, TrimtabError
from trimtab.fusion import Fused
from trimtab.guide import Guide
from trimtab.loading import load_scorers, pool_bytes, precision
from trimtab.params import GuidanceParams
from trimtab.rows import Row, RowFault
from trimtab.scorers import Scorer
from trimtab.scoring.backbones import Backbones
from trimtab.scoring.pool import Ids
from trimtab.scoring.states import HiddenStates
from trimtab.scoring.text import PromptContext
from trimtab.xargs import CARRIED, GROUP_KEY, RECORD_KEY, SHADOW_KEY, VERSIONS_KEY, from_xargs
from trimtab_models.transfers import to_host, upload

log = logging.getLogger(__name__)


def _tokenizer(model: Any) -> Any:
    """The base's tokenizer, or its path; only vLLM runs code of a base, with trust_remote_code."""
    return cached_tokenizer_from_config(model) if model.trust_remote_code else model.tokenizer


class GuidanceProcessor(V1LogitsProcessor, V2LogitsProcessor):
    """Steers the rows of requests whose `extra_args` carry `trimtab_*` keys."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse malformed guidance in the front end, with status 400."""
        extra = sampling_params.extra_args or {}
        guidance = from_xargs(extra)
        if guidance is not None and guidance.said:
            beside.check(sampling_params)
        for key in CARRIED:
            later = key in (GROUP_KEY, SHADOW_KEY) and key in extra  # the scheduler's alone
            if later or not isinstance(extra.get(key, ""), str):
                raise InvalidGuidance(f"{key} is set by the server; leave it out.")
        read_context(extra)

    def __init__(self, vllm_config: VllmConfig, a: Any, b: Any = None) -> None:
        """V1 passes (config, device, pin_memory), V2 (config, request states).

        Raises:
            TrimtabError: the engine's rows are not requests, or a scorer does not load.
        """
        try:
            unsupported.check_config(vllm_config)
        except TrimtabError as error:
            reasons.report(error)
            raise
        orphans.watch()
        self.states: Any = a if b is None else None
        model = vllm_config.model_config
        config = GuidanceConfig.parse(vllm_config.additional_config)
        self.device = torch.device(a.device if b is None else a)
        self.dtype = precision(config, self.device.type, model.dtype)
        self.build = partial(
            load_scorers,
            max_length=model.max_model_len,
            vocab_size=model.get_vocab_size(),
            tokenizer=_tokenizer(model),
            dtype=self.dtype,
            device=self.device,
            model=model.model,
            backbones=Backbones(),
        )
        self.leads = ranks.leads()
        try:
            if self.leads and config.scorers and config.cache_bytes is None:  # a stock vLLM
                size, short = pools.choose(vllm_config)
                config = config.model_copy(update={"cache_bytes": size})
                if short is not None:
                    log.warning("%s", short)
            scorers = ranks.on_leader(self.build, config) if self.leads else {}
        except TrimtabError as error:
            reasons.report(error)
            raise
        self.guide = Guide(scorers, config.scorer_timeout)
        self.guide.late = True
        self.drafts: int = vllm_config.num_speculative_tokens  # of a request, in a step, at most
        self.guide.states.former = 1 + 2 * self.drafts  # as of this step, and of the last one
        self.share = pool_bytes(config) if self.leads else 0  # prefix cache of a new scorer
        self.default_scorers = config.default_scorers
        self.loads: dict[str, Future[Scorer]] = {}  # by version, "name@2"
        self.rows: dict[int, Row] = {}  # V1: by batch index; V2: by request slot
        self.prompts: dict[int, Ids] = {}  # V1: by row key
        self.outputs: dict[int, list[int]] = {}  # V1: by row key; vLLM's own live lists
        self.answers: dict[int, list[int]] = {}  # V1: the same of shadows, by batch index
        self.shadows = Shadows()
        self.seeds = Seeds()
        self.runner: Any = None  # set by the worker extension
        self.hidden: HiddenStates | None = None

    def is_argmax_invariant(self) -> bool:
        """False: guidance may change which token is most likely."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """V1: rows removed, then added, then moved. An add or a move may overwrite a row."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._remove(index)
        for index, params, prompt, output in batch_update.added:
            self._remove(index)
            if self.shadows.enter(index, params.extra_args or {}):
                self.answers[index] = output
                continue
            row = self._row(params, len(prompt or ()))
            if row is not None:
                if prompt is None:
                    row.fault = RowFault("", "guidance needs a prompt of tokens, not embeddings")
                self.rows[index] = row
                self.prompts[row.key] = np.array(prompt or (), dtype=np.int64)
                self.outputs[row.key] = output
        for source, target, direction in batch_update.moved:
            swap = direction == MoveDirectionality.SWAP
            self.shadows.move(source, target, swap=swap)
            move(self.answers, source, target, swap=swap)
            other = move(self.rows, source, target, swap=swap)
            if other is not None:
                self._forget(other)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """V2: a request enters slot `req_idx`, whose earlier request has ended."""
        self._remove(req_idx)
        shadow = self.shadows.enter(req_idx, sampling_params.extra_args or {})
        row = None if shadow else self._row(sampling_params, 0)
        if row is not None:
            self.rows[req_idx] = row
        return shadow or row is not None

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Guide this step's rows, in place."""
        if ctx is None and self.runner is not None and self.device.type == "cpu":
            self.seeds.take(self.runner, self.runner.discard_request_mask.np)
        if not self.rows:
            return logits
        met = self.shadows.meet(self._sampling(len(logits), ctx)) if self.shadows.mains else {}
        for place, row in self.rows.items():
            row.beside = met.get(place, ())
        if not ranks.several():
            self._guide(logits, ctx)
            return logits
        done: list[Fused] = []
        if self.leads:
            ranks.on_leader(self._guide, logits, ctx, done)
        slots = range(len(logits)) if ctx is None else self._slots(ctx)
        rows = {b: self.rows[slot] for b, slot in enumerate(slots) if slot in self.rows}
        ks = {b: row.params.k for b, row in rows.items()}
        ranks.share(logits, ks, done if self.leads else None)
        return logits

    def attach(self, runner: Any) -> None:
        """Use a runner: for V1 its mask of rows that still load, and the base's states."""
        self.runner = runner
        self.shadows.watch(runner.sampler)
        modules = runner.model.modules()
        logits = next((m for m in modules if isinstance(m, LogitsModule)), None)
        if logits is not None:
            self.hidden = HiddenStates(logits, argument=1)

    def load(self, version: str, spec: ScorerSpec, root: Path) -> None:
        """Start to load a scorer in a thread, so that decoding continues."""
        loaded: Future[Scorer] = Future()
        self.loads[version] = loaded
        name = version.partition("@")[0]

        def work() -> None:
            try:
                loaded.set_result(
                    hot_loading.load(
                        name,
                        spec,
                        root,
                        self.build,
                        cache_bytes=self.share,
                        dtype=self.dtype,
                        device=self.device,
                    )
                )
            except BaseException as error:
                loaded.set_exception(error)

        Thread(target=work, name=f"load {version}", daemon=True).start()

    def _guide(self, logits: Tensor, ctx: Any, done: list[Fused] | None = None) -> None:
        rows = list(self.rows.items())
        try:
            choices = None
            if ctx is None:
                rows = self._v1_rows(len(logits))
            else:
                rows, choices = self._v2_rows(logits, ctx)
            hidden = None if self.hidden is None else self.hidden.of(len(logits))
            self.guide.step(logits, rows, hidden, done, choices)
        except Exception as error:
            # Last resort: no row of this step is guided any more.
            log.error("guidance failed: %s", type(error).__name__)
            log.debug("guidance failed", exc_info=error)
            for _, row in rows:
                row.fault = row.fault or RowFault("", f"{type(error).__name__} in guidance")
        for _, row in rows:
            row.earlier = None  # so that no row keeps another alive

    def _row(self, params: SamplingParams, prompt_length: int) -> Row | None:
        """The row of a new request, or None if it has no guidance."""
        extra = params.extra_args or {}
        guidance, fault, context = GuidanceParams(), None, PromptContext()
        scorers = self.guide.registry.at(extra.get(VERSIONS_KEY, ""))
        try:
            sent = from_xargs(extra)
            if sent is None:
                return None
            guidance = sent
            if not self.leads:
                return Row(guidance, prompt_length)
            guidance = guidance.resolve(scorers, self.default_scorers)
            context = read_context(extra)
        except TrimtabError as error:
            # Only a stock front end passes an unknown scorer on.
            log.error("a request cannot be guided: %s", error)
            fault = RowFault("", error.message)
        except Exception as error:
            log.error("a request cannot be guided: %s", type(error).__name__)
            fault = RowFault("", f"{type(error).__name__} in guidance")
        if fault is not None:  # names no scorer, but all ranks agree on k
            guidance = GuidanceParams(k=guidance.k)
        stop_token = params.eos_token_id
        if stop_token is None:
            stop_token = min(params.all_stop_token_ids, default=None)
        return Row(
            guidance,
            prompt_length,
            None if params.ignore_eos else stop_token,
            record_key=extra.get(RECORD_KEY),
            context=context,
            scorers={name: scorers[name] for name in guidance.scorers or {}},
            fault=fault,
            max_tokens=params.max_tokens,
        )

    def _remove(self, index: int) -> None:
        self.shadows.leave(index)
        self.answers.pop(index, None)
        row = self.rows.pop(index, None)
        if row is not None:
            self._forget(row)

    def _forget(self, row: Row) -> None:
        self.guide.states.end(row.drafted[-1] if row.drafted else row)
        # The scorers' pools keep the prefix, for other rows to share, until it is evicted.
        self.prompts.pop(row.key, None)
        self.outputs.pop(row.key, None)

    def _sampling(self, batch: int, ctx: Any) -> dict[int, tuple[int, int]]:
        """The row of logits and the answer's length of each request that samples, by its place."""
        if ctx is not None:
            states = self.states
            pairs = zip(self._slots(ctx), ctx.seq_lens_upper_bound_np.tolist(), strict=True)
            return {
                slot: (b, length - int(states.prompt_len.np[slot]))
                for b, (slot, length) in enumerate(pairs)
                if length >= states.prefill_len.np[slot]
            }
        loading = None if self.runner is None else self.runner.discard_request_mask.np
        lengths = {place: len(answer) for place, answer in self.answers.items()}
        lengths |= {place: len(self.outputs[row.key]) for place, row in self.rows.items()}
        return {
            place: (place, length)
            for place, length in lengths.items()
            if place < batch and not (loading is not None and loading[place])
        }

    def _v1_rows(self, batch: int) -> list[tuple[int, Row]]:
        """Rows whose prompt is loaded, with their current prefixes."""
        self.guide.catch_up()
        loading = None if self.runner is None else self.runner.discard_request_mask.np
        rows = []
        for index, row in sorted(self.rows.items()):
            if index >= batch or (loading is not None and loading[index]):
                continue
            output = np.array(self.outputs[row.key], dtype=np.int64)
            self._set_prefix(row, np.concatenate((self.prompts[row.key], output)))
            rows.append((index, row))
        return rows

    def _v2_rows(self, logits: Tensor, ctx: Any) -> tuple[list[tuple[int, Row]], Choices | None]:
        """The same for V2, from the device, with the rows after draft tokens.

        Without draft tokens, one copy has both the last tokens and the candidates of the rows.
        """
        states, rows, settled = self.states, list[tuple[int, Row]](), list[int]()
        tokens, choices = states.all_token_ids.gpu, None
        if self.drafts:
            requests = prefixes.with_drafts(tokens, ctx, 1 + self.drafts)
            requests = [one for one in requests if self._guides(one.slot, one.length)]
        else:
            requests, choices = self._v2_requests(logits, ctx)
        texts = [prefixes.text(tokens, one, self.rows[one.slot].prefix) for one in requests]
        self.guide.catch_up()  # now that all earlier work is done
        for one, text in zip(requests, texts, strict=True):
            row = self.rows[one.slot]
            row.prompt_length = int(states.prompt_len.np[one.slot])
            self._set_prefix(row, text)
            settled += drafts.settle(row, self.guide.records)
            rows += enumerate((row, *drafts.ahead(row, one.drafted)), one.index)
        if settled:
            self.guide.registry.forget(settled)
        return rows, choices

    def _v2_requests(
        self, logits: Tensor, ctx: Any
    ) -> tuple[list[prefixes.Request], Choices | None]:
        """Requests that are guided, and their candidates; the host knows their lengths."""
        tokens, lengths = self.states.all_token_ids.gpu, ctx.seq_lens_upper_bound_np.tolist()
        guided = [
            (index, slot, length)
            for index, (slot, length) in enumerate(zip(self._slots(ctx), lengths, strict=True))
            if self._guides(slot, length)
        ]
        if not guided:
            return [], None
        slots, ends = upload(torch.tensor(guided), tokens.device).T[1:]
        parts = [prefixes.recent(tokens, slots, ends, 1)]
        choices = self.guide.choose(logits, [(index, self.rows[slot]) for index, slot, _ in guided])
        recent, *chosen = to_host(parts + ([] if choices is None else choices.parts))
        if choices is not None:
            choices.arrive(chosen)
        last = recent.numpy().astype(np.int64)  # [requests, 2]
        return [prefixes.Request(*one, ids) for one, ids in zip(guided, last, strict=True)], choices

    def _guides(self, slot: int, length: int) -> bool:
        """Whether a request of so many tokens is guided now: not while its prompt is loading."""
        return slot in self.rows and length >= self.states.prefill_len.np[slot]

    def _slots(self, ctx: Any) -> list[int]:
        """V2's slot of each row of logits."""
        slots = ctx.expanded_idx_mapping if self.drafts else ctx.idx_mapping_np
        return [int(slot) for slot in slots.tolist()]

    def _set_prefix(self, row: Row, prefix: Ids) -> None:
        row.prefix = prefix
        if row.fault is None and (len(prefix) == 0 or prefix.min() < 0):
            # Placeholders of asynchronous scheduling must never be scored.
            row.fault = RowFault("", "the engine passed tokens that are not known yet")
            log.error("a prefix holds placeholder tokens; the row is not guided")
