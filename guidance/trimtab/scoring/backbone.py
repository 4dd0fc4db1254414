"""A scorer's network behind a prefix pool: one packed forward a step for all rows.

Only new tokens go through the network: prefix tokens that are not cached, and candidates. On CUDA
the last token is read again at each step, so that shapes are fixed and a step is one graph.
`tests/guidance/test_backbone.py` compares it with re-forwarding every prefix + candidate.
"""

from collections.abc import Sequence
from copy import copy
from itertools import count
from typing import Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.errors import ScorerLoadError
from trimtab.scoring import captured, deadline, exactness, waves
from trimtab.scoring.attention import AttentionPlan
from trimtab.scoring.captured import FixedSteps
from trimtab.scoring.common import CommonForward
from trimtab.scoring.fixed import FixedRow
from trimtab.scoring.pool import NO_IDS, Ids, PoolFull, PrefixPool
from trimtab.scoring.shared import Block
from trimtab.scoring.text import Prompt
from trimtab.scoring.waves import FixedWave, Wave
from trimtab_models.networks import attention_of_any_shape, kv_shape, split

_next_fork = count(-1, -1).__next__
"""Keys of branches: negative, unlike the keys of an engine's rows."""


class Backbone:
    """A frozen network whose forward shares prefixes between steps, candidates and rows."""

    reads = "tokens"

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_length: int,
        pool_bytes: int,
        max_candidates: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare `model` for prefixes of up to `max_length` tokens.

        max_candidates: of a row in one forward; more are forwarded in parts.

        Raises:
            ScorerLoadError: the network cannot be served exactly, or the pool is too small.
        """
        self.model = model.to(device).requires_grad_(False).eval()
        self.network, self.head = split(self.model)
        exactness.check_config(self.network, max_length)
        layers, kv_heads, head_dim = kv_shape(self.network.config)
        self.pool = PrefixPool(
            layers=layers,
            kv_heads=kv_heads,
            head_dim=head_dim,
            max_bytes=pool_bytes,
            temporary=waves.MAX_TOKENS + max_candidates,
            dtype=self.model.dtype,
            device=device,
        )
        if self.pool.size <= max_length + max_candidates:
            raise ScorerLoadError(
                f"a prefix pool of {pool_bytes} bytes holds {self.pool.size} tokens; one row may "
                f"need {max_length + max_candidates + 1}. Raise cache_bytes or lower the "
                "model's maximum length."
            )
        self.last = self.model.get_input_embeddings().num_embeddings - 1
        """Replaces larger ids: padding of the base's vocabulary beyond the network's, which no
        text contains."""
        self.tokens_forwarded = 0
        self.max_candidates = max_candidates
        self.common = CommonForward()
        self.fixed = captured.on_cuda(self.network, self.pool)
        try:
            exactness.check_scores(self.model, self._probe)
        except ScorerLoadError:
            if self.fixed is None:
                raise
            self.fixed = None  # a network that no graph can hold is served as on the CPU
            exactness.check_scores(self.model, self._probe)

    def under(self, model: PreTrainedModel) -> Self:
        """This backbone, its pool included, under the head of a model with equal weights.

        It counts only the tokens that are forwarded for this head first.

        Raises:
            ScorerLoadError: the model's output is more than its head of the last hidden state.
        """
        exactness.check_head(model)
        other = copy(self)
        other.model = model.requires_grad_(False).eval()
        other.head = split(model)[1].to(self.pool.k.device)
        setattr(model, model.base_model_prefix, self.network)  # its own is dropped
        other.tokens_forwarded = 0
        return other

    def hidden(
        self,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids] | None,
        prompts: Sequence[Prompt] = (),
    ) -> Tensor:
        """Last hidden states of every row's candidates, [Σ candidates, hidden], in row order.

        With `candidates` None: of every prefix's last token, [rows, hidden].

        keys identify rows across steps; prefixes must not be empty, nor modified afterwards. Only
        networks that read text use prompts (cross.py). Rows that were announced for several calls
        are forwarded once (common.py).
        """
        return self.common.read(keys, prefixes, candidates, self._forward)

    def _forward(
        self, keys: Sequence[int], prefixes: Sequence[Ids], candidates: Sequence[Ids] | None
    ) -> Tensor:
        """As `hidden`, for these rows alone."""
        try:
            prefixes = [np.minimum(prefix, self.last) for prefix in prefixes]
            if candidates is not None:
                candidates = [np.minimum(group, self.last) for group in candidates]
                if max(map(len, candidates)) > self.max_candidates:
                    return self._in_parts(keys, prefixes, candidates)
            return self._hidden(keys, prefixes, candidates)
        except BaseException:
            # Planned tokens may not have been computed: none of them may be reused.
            for key in keys:
                self.pool.drop(key)
            raise

    def branches(
        self, keys: Sequence[int], trunks: Sequence[Ids], branches: Sequence[Sequence[Ids]]
    ) -> Tensor:
        """Last hidden states of every trunk + branch, [Σ branches, hidden], in row order.

        For a network with another tokenizer, branches of one or more tokens replace candidates. The
        trunk is cached like a prefix (it may be empty), the branches are not.
        """
        forks: list[int] = []
        try:
            self.pool.begin(keys, trunks)
            order = self._order(keys, trunks)
            wave = Wave()
            outputs: list[Tensor] = []
            for i in order:
                key, trunk = keys[i], trunks[i]
                for end in branches[i]:
                    # Already cached after the first branch, unless it was cut since.
                    self.pool.reconcile(key, trunk)
                    wave = self._enter(wave, outputs, key, trunk, NO_IDS, own=True)
                    forks.append(_next_fork())
                    self.pool.fork(key, forks[-1])
                    whole = np.concatenate((trunk, end))
                    wave = self._enter(wave, outputs, forks[-1], whole, NO_IDS)
                    wave.want(1)
            outputs.append(self._run(wave))
            return _in_row_order(outputs, order, list(map(len, branches)))
        except BaseException:
            for key in keys:
                self.pool.drop(key)
            raise
        finally:
            for fork in forks:
                self.pool.drop(fork)

    def forget(self, key: int) -> None:
        """Drop what is cached for a row."""
        self.pool.drop(key)

    def reset(self) -> None:
        """Drop everything cached, in any state."""
        self.pool.clear()

    def shortened(self, key: int) -> int:
        """See Scorer.shortened; the engine refuses longer prefixes."""
        return 0

    def _probe(self, prefixes: Sequence[Ids], candidates: Sequence[Ids]) -> Tensor:
        """As `hidden`, without a trace: rows are forgotten, and tokens not counted."""
        keys = range(-1, -1 - len(prefixes), -1)
        hidden = self.hidden(keys, prefixes, candidates)
        if self.fixed is not None:  # the second step is the graph's
            hidden = self.hidden(keys, prefixes, candidates)
        for key in keys:
            self.forget(key)
        self.tokens_forwarded = 0
        return hidden

    def _hidden(
        self, keys: Sequence[int], prefixes: Sequence[Ids], candidates: Sequence[Ids] | None
    ) -> Tensor:
        if self.fixed is not None:
            return self._fixed(self.fixed, keys, prefixes, candidates)
        known = [prefix[:-1] for prefix in prefixes] if candidates is None else prefixes
        self.pool.begin(keys, known)
        wave = Wave()
        outputs: list[Tensor] = []
        for i, (key, prefix) in enumerate(zip(keys, prefixes, strict=True)):
            own = NO_IDS if candidates is None else candidates[i]
            if key not in self.pool.entries:
                self.pool.reconcile(key, known[i])
            wave = self._enter(wave, outputs, key, prefix, own)
            wave.want(len(own) if candidates is not None else 1)
        outputs.append(self._run(wave))
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def _in_parts(
        self, keys: Sequence[int], prefixes: Sequence[Ids], candidates: Sequence[Ids]
    ) -> Tensor:
        """As `_hidden`, in several forwards, so that none has too many candidates of a row.

        The last forward has each row's first candidates, the most likely ones: the pool keeps the
        K/V of these, in case that one of them is chosen.
        """
        size, parts = self.max_candidates, dict[tuple[int, int], Tensor]()
        for start in reversed(range(0, max(map(len, candidates)), size)):
            rows = [i for i, group in enumerate(candidates) if len(group) > start]
            part = [candidates[i][start : start + size] for i in rows]
            hidden = self._hidden([keys[i] for i in rows], [prefixes[i] for i in rows], part)
            for i, own in zip(rows, hidden.split(list(map(len, part))), strict=True):
                parts[i, start] = own
        return torch.cat([parts[place] for place in sorted(parts)])

    def _fixed(
        self,
        steps: FixedSteps,
        keys: Sequence[int],
        prefixes: Sequence[Ids],
        candidates: Sequence[Ids] | None,
    ) -> Tensor:
        """As `_hidden`, with every row's last token read again in steps of fixed shapes."""
        known = [prefix[:-1] for prefix in prefixes]
        self.pool.begin(keys, known)
        order = self._order(keys, known)
        outputs: list[Tensor] = []
        wave = FixedWave()
        for i in order:
            key, prefix = keys[i], prefixes[i]
            candidate_ids = NO_IDS if candidates is None else candidates[i]
            if key not in self.pool.entries:
                self.pool.reconcile(key, known[i])
            cached = len(self.pool.entries[key].tokens)
            if not wave.fits(len(prefix), len(prefix) - cached, len(candidate_ids)):
                outputs.append(self._run_fixed(steps, wave))
                wave = FixedWave()
            while len(prefix) - cached > waves.MAX_TOKENS:
                chunk, cached = Wave(), cached + waves.MAX_TOKENS
                self._plan(chunk, key, prefix[:cached], NO_IDS, own=True)
                self._run(chunk)
            try:
                self.pool.extend(key, prefix, wave.keys)
            except PoolFull:  # compute the rows that fill the pool, so that they can be cut
                if not wave.rows:
                    raise
                outputs.append(self._run_fixed(steps, wave))
                wave = FixedWave()
                self.pool.extend(key, prefix, wave.keys)
            wave.add(key, FixedRow(prefix, self.pool.entries[key].slots, candidate_ids), cached)
        outputs.append(self._run_fixed(steps, wave))
        counts = [1] * len(keys) if candidates is None else list(map(len, candidates))
        return _in_row_order(outputs, order, counts)

    def _order(self, keys: Sequence[int], prefixes: Sequence[Ids]) -> list[int]:
        """Rows in the order in which they are computed: those that miss most come last.

        When slots are short, they then take those of rows that this step needs no more.
        """
        missing = [self.pool.missing(*row) for row in zip(keys, prefixes, strict=True)]
        return sorted(range(len(missing)), key=missing.__getitem__)

    def _run_fixed(self, steps: FixedSteps, wave: FixedWave) -> Tensor:
        if wave.tokens > len(wave.rows):  # some row misses more than its last token
            missing = Wave()
            for row, cached in zip(wave.rows, wave.cached, strict=True):
                n = len(row.prefix)
                missing.add(
                    row.prefix[cached:],
                    np.arange(cached, n),
                    Block(row.slots, n, cached, n - cached),
                )
            self._run(missing)
        deadline.check()
        self.tokens_forwarded += sum(1 + len(row.candidates) for row in wave.rows)
        return steps.hidden(wave.rows)

    def _enter(
        self,
        wave: Wave,
        outputs: list[Tensor],
        key: int,
        prefix: Ids,
        candidates: Ids,
        own: bool = False,
    ) -> Wave:
        """Plan a row's missing tokens and its candidates; run the wave first if it is full.

        own: whether the whole prefix must get slots of its own, for other rows or later waves.
        """
        cached = len(self.pool.entries[key].tokens)
        while len(prefix) - cached > waves.MAX_TOKENS:
            outputs.append(self._run(wave))
            wave, cached = Wave(), cached + waves.MAX_TOKENS
            self._plan(wave, key, prefix[:cached], NO_IDS, own=True)
            self._run(wave)
            wave = Wave()
        if wave.tokens + len(prefix) - cached + len(candidates) > waves.MAX_TOKENS:
            outputs.append(self._run(wave))
            wave = Wave()
        try:
            self._plan(wave, key, prefix, candidates, own)
        except PoolFull:
            # Rows of this wave fill the pool: compute them, so that they can be cut.
            outputs.append(self._run(wave))
            wave = Wave()
            self._plan(wave, key, prefix, candidates, own)
        return wave

    def _plan(self, wave: Wave, key: int, prefix: Ids, candidates: Ids, own: bool) -> None:
        cached = self.pool.entries[key].slots
        new = self.pool.extend(key, prefix, wave.keys, None if own else wave.tokens)
        wave.keys.add(key)
        n, start = len(prefix), len(cached)
        if n == start and not len(candidates):
            return
        block = Block(
            np.concatenate((cached, new, np.zeros_like(candidates))),
            n,
            start,
            len(new) + len(candidates),
        )
        wave.add(
            np.concatenate((prefix[start:], candidates)),
            np.concatenate((np.arange(start, n), np.full(len(candidates), n))),
            block,
        )
        if len(candidates):
            wave.candidates.append((key, candidates, block, wave.tokens - len(candidates)))

    def _run(self, wave: Wave) -> Tensor:
        deadline.check()
        if not wave.blocks:
            return torch.empty(0, self.network.config.get_text_config().hidden_size)
        device = self.pool.k.device
        for key, candidates, block, first in wave.candidates:  # after all prefixes of the wave
            block.slots[block.prefix :] = self.pool.hold(key, block.prefix, candidates, first)
        new_slots = np.concatenate([block.slots[block.start :] for block in wave.blocks])
        plan = AttentionPlan(self.pool, wave.blocks, new_slots)
        ids = torch.from_numpy(np.concatenate(wave.ids)).to(device)
        positions = torch.from_numpy(np.concatenate(wave.positions)).to(device)
        self.tokens_forwarded += len(ids)
        with torch.inference_mode(), attention_of_any_shape():
            hidden: Tensor = self.network(
                input_ids=ids[None],
                position_ids=positions[None],
                use_cache=False,
                trimtab_plan=plan,
            ).last_hidden_state[0]
        if len(wave.wanted) == len(ids):
            return hidden
        return hidden.index_select(0, torch.tensor(wave.wanted, dtype=torch.long, device=device))


def _in_row_order(outputs: list[Tensor], order: list[int], counts: list[int]) -> Tensor:
    """Outputs of rows computed in `order`, in the order of the rows; counts: outputs of each."""
    packed = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    if order == sorted(order):
        return packed
    parts = packed.split([counts[i] for i in order])
    return torch.cat([part for _, part in sorted(zip(order, parts, strict=True), key=_first)])


def _first(pair: tuple[int, Tensor]) -> int:
    return pair[0]
