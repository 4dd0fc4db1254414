"""A sampler without an engine: completions made up from their seeds, in an order of its own.

python made_up.py FILE SECONDS    rollouts into FILE, a pause of SECONDS before each completion
"""

import random
import time

from transformers import AutoTokenizer

from trimtab.sampling import Completion, RolloutSampling
from trimtab_lab.rollouts.journal import Journal
from trimtab_lab.rollouts.prompts import RolloutPrompt
from trimtab_lab.rollouts.run import roll_out
from trimtab_models import demo

SAMPLING = RolloutSampling(n=40, max_tokens=12)
TEXTS = [f"RolloutPrompt {i}." for i in range(10)]


class MadeUp:
    max_length = 512

    def __init__(self, *_, pause=0.0, **__):
        self.tokenizer = AutoTokenizer.from_pretrained(demo.base())
        self.pause, self.drawn = pause, 0

    def stream(self, requests, **_):
        window, order = [], random.Random(self.drawn)
        left = iter(requests)
        while True:
            window += [request for _, request in zip(range(5 - len(window)), left, strict=False)]
            if not window:
                return
            request = window.pop(order.randrange(len(window)))
            time.sleep(self.pause)
            draw = random.Random(request.seed)
            length = draw.randint(1, request.max_tokens)
            ids = [draw.randrange(10, 900) for _ in range(length)]
            self.drawn += 1
            yield request.key, Completion(ids, [-draw.random() for _ in ids])


def prompts(sampler):
    return [RolloutPrompt(text, sampler.tokenizer(text).input_ids) for text in TEXTS]


def count_words(records):
    return [float(len(record["completion"].split())) for record in records]


def run(path, pause):
    """Rollouts into a file, with a pause of so many seconds before each completion."""
    sampler = MadeUp(pause=pause)
    with Journal(path, {"seed": 0}) as journal:
        roll_out(sampler, prompts(sampler), SAMPLING, count_words, journal)
