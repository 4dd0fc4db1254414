"""The rows of principles for transformers: the model itself, once more for each of them.

Each has a K/V cache of its own, which is compared with the row's tokens at each step, cut at the
first difference and extended, as the caches of scorers are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from trimtab.principles import insertion
from trimtab.rows import Row
from trimtab.scoring.pool import Ids, common_prefix


class OtherRows:
    """A model's logits after principles."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._caches: dict[tuple[int, str], tuple[Ids, DynamicCache]] = {}

    @torch.inference_mode()
    def logits(self, rows: Sequence[Row], first: int) -> Tensor:
        """The logits after each principle of each row, [Σ principles, vocab].

        Notes in the rows which are theirs: they follow `first` other rows. Only the caches of these
        rows are kept for the next step.
        """
        caches, made = {}, list[Tensor]()
        for row in rows:
            row.beside = range(first + len(made), first + len(made) + len(row.params.said))
            for name, principle in row.params.said.items():
                prompt = row.prefix[: row.prompt_length].tolist()
                at, ids = insertion(self.tokenizer, principle.text, prompt)
                text = np.concatenate((row.prefix[:at], ids, row.prefix[at:])).astype(np.int64)
                cache, logits = self._read(text, self._caches.get((row.key, name)))
                caches[row.key, name] = text, cache
                made.append(logits)
        self._caches = caches
        return torch.stack(made)

    def _read(self, text: Ids, known: tuple[Ids, DynamicCache] | None) -> tuple[DynamicCache, Any]:
        cache, same = DynamicCache(config=self.model.config), 0
        if known is not None:
            before, kept = known
            same = min(common_prefix(before, text), len(text) - 1)
            if same < len(before):
                kept.crop(same)
            cache = kept
        ids = torch.from_numpy(text[same:])[None].to(self.model.device)
        answer = self.model(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache, answer.logits[0, -1].float()
