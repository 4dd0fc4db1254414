"""The plain reference's answers, made by one process a core: slow, and out of pytest's way."""

import os
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context

import torch
from reference import Reference
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from trimtab.params import GuidanceParams
from trimtab_models import demo

TOKENS = 32
SCORERS = [
    {"sentiment": 1.0},
    {"formality": 1.0},
    {"brevity": 1.0},
    {"sentiment": 1.0, "formality": 1.0, "brevity": 1.0},
    {"sentiment": -1.0},
]
SETTINGS = [
    {"scorers": scorers, "beta": 4.0, "tail": tail, **candidates}
    for scorers, tail, candidates in product(
        SCORERS, ["truncate", "mean"], [{"mass": 0.99}, {"mass": 1.0, "k": 10}]
    )
]


def start():
    global reference  # noqa: PLW0603  one a process
    torch.set_num_threads(1)
    base = AutoModelForCausalLM.from_pretrained(demo.base(), dtype=torch.float32)
    reference = Reference(base, demo.scorers())


def answers(prompt):
    """(tokens, KL) for each of SETTINGS, and the unguided tokens."""
    eos = reference.base.config.eos_token_id
    guided = [
        reference.greedy(prompt, GuidanceParams.parse(setting), TOKENS, eos) for setting in SETTINGS
    ]
    return guided, reference.greedy(prompt, GuidanceParams(beta=0.0), TOKENS, eos)[0]


def all_answers(prompts):
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), start) as pool:
        return list(tqdm(pool.map(answers, prompts), total=len(prompts), unit="prompt"))
