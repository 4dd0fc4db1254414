"""Rollouts of the demo's base model, sampled with plain transformers, and their rewards."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tqdm import tqdm

from trimtab_models.data import Record
from trimtab_models.data.fields import rejudged
from trimtab_models.demo import corpus, world
from trimtab_models.generation import generate

MOST_TOKENS = 96


def training_prompts(tokenizer: Any, n: int, seed: int) -> list[str]:
    """n prompts as the model reads them: chats, some raw prompts and some requests for JSON."""
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


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    seed: int,
    batch_size: int = 256,
    most_tokens: int = MOST_TOKENS,
) -> list[Record]:
    """One completion of each prompt at temperature 1, as records without rewards.

    "completion" is the text without special tokens; "completion_token_ids" are the sampled ids,
    with EOS if it was sampled within `most_tokens`.
    """
    torch.manual_seed(seed)
    records: list[Record] = []
    for start in tqdm(range(0, len(prompts), batch_size), desc="rollouts", unit="batch"):
        texts = list(prompts[start : start + batch_size])
        prompt_ids = tokenizer(texts, add_special_tokens=False).input_ids
        answers = generate(
            model,
            prompt_ids,
            eos=tokenizer.eos_token_id,
            pad_id=tokenizer.pad_token_id,
            most=most_tokens,
        )
        records += [
            {
                "prompt": text,
                "completion": tokenizer.decode(answer, skip_special_tokens=True),
                "prompt_token_ids": ids,
                "completion_token_ids": answer,
            }
            for text, ids, answer in zip(texts, prompt_ids, answers, strict=True)
        ]
    return records


def label(records: Sequence[Record], reward: Callable[[str, str], float]) -> list[Record]:
    """The records with their "reward" set."""
    return [{**rejudged(r), "reward": reward(r["prompt"], r["completion"])} for r in records]
