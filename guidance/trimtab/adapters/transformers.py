"""Guidance inside transformers' `generate`, without any server.

guide = Guide(load_scorers(config, max_length=512, vocab_size=model.config.vocab_size))
processor = TransformersGuidance(guide, GuidanceParams(beta=4.0))
model.generate(**inputs, logits_processor=LogitsProcessorList([processor]))
"""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from trimtab.errors import ScorerFault
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.rows import Row


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
    ) -> None:
        self.guide = guide
        self.params = params.resolve(guide.registry.scorers)
        self.padding = None if attention_mask is None else (attention_mask == 0).sum(-1).tolist()
        self.rows: list[Row] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Fuse the scores of a step, [rows, vocab], given all tokens so far, [rows, length].

        Raises:
            ScorerFault: a scorer failed and `on_error` is `fail`.
        """
        if not self.rows:
            length = input_ids.shape[1]
            self.rows = [Row(self.params, length) for r in range(len(input_ids))]
        ids = input_ids.cpu().numpy()
        for r, row in enumerate(self.rows):
            # generate() repeats each prompt for num_return_sequences, in order.
            padding = self.padding[r * len(self.padding) // len(ids)] if self.padding else 0
            row.prefix = ids[r, padding:]
        logits = scores.to(torch.float32, copy=True)
        self.guide.step(logits, list(enumerate(self.rows)))
        failed = next((row.fault for row in self.rows if row.fault is not None), None)
        if failed is not None and self.params.on_error == "fail":
            raise ScorerFault(f"scorer '{failed.scorer}' {failed.message}.")
        return logits
