"""Rollouts of the demo's base model, sampled with plain transformers, and their rewards."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tqdm import tqdm

from trimtab_models.data import Record
from trimtab_models.demo import corpus, world

MOST_TOKENS = 96


def training_prompts(tokenizer: Any, n: int, seed: int) -> list[str]:
    """n prompts as the model reads them: chats, and some raw or asking for JSON."""
    draw = random.Random(seed)
    texts = []
    for prompt in world.prompts("train", n, seed):
        lot = draw.random()
        if lot < 0.06:
            texts.append(corpus.raw_prompt(prompt))
            continue
        if lot < 0.1:
            request = draw.choice(corpus.FORMS_OF_JSON).format(world.kind_in(prompt))
        else:
            request = prompt
        chat = [{"role": "user", "content": request}]
        texts.append(
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        )
    return texts


@torch.inference_mode()
def sample(
    model: Any, tokenizer: Any, prompts: Sequence[str], seed: int, batch_size: int = 256
) -> list[Record]:
    """One completion a prompt at temperature 1, as records without a reward yet.

    Of a record, "completion" is the text without special tokens, and "completion_token_ids" what
    was sampled, EOS included when it came within `MOST_TOKENS`.
    """
    torch.manual_seed(seed)
    eos = tokenizer.eos_token_id
    records: list[Record] = []
    for start in tqdm(range(0, len(prompts), batch_size), desc="rollouts", unit="batch"):
        texts = list(prompts[start : start + batch_size])
        batch = tokenizer(
            texts,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_token_type_ids=False,
        )
        output = model.generate(
            **batch, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=MOST_TOKENS
        )
        for text, ids in zip(texts, output[:, batch.input_ids.shape[1] :].tolist(), strict=True):
            answer = ids[: ids.index(eos) + 1] if eos in ids else ids
            records.append(
                {
                    "prompt": text,
                    "completion": tokenizer.decode(answer, skip_special_tokens=True),
                    "prompt_token_ids": tokenizer(text, add_special_tokens=False).input_ids,
                    "completion_token_ids": answer,
                }
            )
    return records


def label(records: Sequence[Record], reward: Callable[[str, str], float]) -> list[Record]:
    """The records with their "reward" set."""
    return [{**r, "reward": reward(r["prompt"], r["completion"])} for r in records]
