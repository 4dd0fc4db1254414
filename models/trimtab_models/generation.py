"""Completions sampled from a language model at temperature 1, with plain transformers."""

from collections.abc import Sequence
from typing import Any

import torch

from trimtab_models.data.encoding import cut


@torch.inference_mode()
def generate(
    model: Any, prompts: Sequence[list[int]], *, eos: int, pad_id: int, most: int
) -> list[list[int]]:
    """One completion of each prompt, of `most` tokens at most, cut after its first EOS.

    Uses torch's global generator. The model keeps its training or evaluation mode.
    """
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    training = model.training
    model.eval()
    output = model.generate(
        input_ids=torch.tensor(
            [[pad_id] * n + prompt for n, prompt in zip(padding, prompts, strict=True)],
            device=model.device,
        ),
        attention_mask=torch.tensor(
            [[0] * n + [1] * (width - n) for n in padding], device=model.device
        ),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=eos,
        pad_token_id=pad_id,
        max_new_tokens=most,
    )
    model.train(training)
    return [cut(ids, eos) for ids in output[:, width:].tolist()]
