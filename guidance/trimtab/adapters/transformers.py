"""Guidance inside transformers' `generate`, without any server.

guide = Guide(load_scorers(config, max_length=512, vocab_size=model.config.vocab_size))
processor = TransformersGuidance(guide, GuidanceParams(beta=4.0))
model.generate(**inputs, logits_processor=LogitsProcessorList([processor]))
"""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from trimtab.adapters.other_rows import OtherRows
from trimtab.errors import InvalidGuidance, ScorerFault
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scoring.states import HiddenStates


class TransformersGuidance(LogitsProcessor):
    """One request's guidance for a batch of sequences; create a new one for each `generate`.

    Left padding is removed according to `attention_mask`. Beam search moves rows between steps,
    which only costs time.
    """

    def __init__(
        self,
        guide: Guide,
        params: GuidanceParams,
        attention_mask: Tensor | None = None,
        hidden: HiddenStates | None = None,
        max_new_tokens: int | None = None,
        others: OtherRows | None = None,
    ) -> None:
        """hidden: of the model's output embedding, for probes. max_new_tokens: of `generate`.

        others: the model itself, for principles.

        Raises:
            InvalidGuidance: a kl_budget is to be spread over an unknown number of tokens, or there
                are principles but no model.
        """
        self.guide = guide
        self.hidden = hidden
        self.params = params.resolve(guide.registry.scorers)
        self.max_tokens = max_new_tokens
        used = [name for name, w in (self.params.scorers or {}).items() if w != 0]
        foreseen = all(guide.registry.scorers[name].foresees for name in used)
        foreseen = foreseen and not self.params.said
        if self.params.kl_budget is not None and max_new_tokens is None and not foreseen:
            raise InvalidGuidance(
                "a kl_budget is spread over the tokens of the answer, and their maximum is not "
                "known; pass max_new_tokens to `processors` as well as to `generate`.",
                param="kl_budget",
            )
        self.others = others
        if self.params.said and others is None:
            raise InvalidGuidance(
                "principles need the base itself, for a further row; pass model=… to Guidance.",
                param="principles",
            )
        self.padding = None if attention_mask is None else (attention_mask == 0).sum(-1).tolist()
        self.rows: list[Row] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Fuse the scores of a step, [rows, vocab], given all tokens so far, [rows, length].

        Raises:
            ScorerFault: a scorer failed and `on_error` is `fail`.
        """
        if not self.rows:
            length = input_ids.shape[1]
            count = len(input_ids)
            self.rows = [
                Row(self.params, length - self._padding(r, count), max_tokens=self.max_tokens)
                for r in range(count)
            ]
        ids = input_ids.cpu().numpy()
        for r, row in enumerate(self.rows):
            row.prefix = ids[r, self._padding(r, len(ids)) :]
        logits = scores.to(torch.float32, copy=True)
        hidden = None if self.hidden is None else self.hidden.of(len(self.rows))
        if self.others is not None and self.params.said and self.params.steers:
            logits = torch.cat((logits, self.others.logits(self.rows, len(logits)).to(logits)))
        self.guide.step(logits, list(enumerate(self.rows)), hidden)
        failed = next((row.fault for row in self.rows if row.fault is not None), None)
        if failed is not None and self.params.on_error == "fail":
            raise ScorerFault(f"scorer '{failed.scorer}' {failed.message}.")
        return logits[: len(self.rows)]

    def _padding(self, r: int, count: int) -> int:
        """Padding tokens of a row; generate() repeats each prompt, in order."""
        return self.padding[r * len(self.padding) // count] if self.padding else 0
