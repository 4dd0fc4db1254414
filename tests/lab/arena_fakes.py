"""An arena without an engine: a world of one reward, and a bench that knows how methods fare."""

import numpy as np

from trimtab_lab.arena.methods import METHODS
from trimtab_lab.arena.runs import Run
from trimtab_lab.arena.scale import Scale
from trimtab_lab.arena.task import Task
from trimtab_lab.worlds import World

PROMPTS = 24
WORLD = World(
    name="made-up",
    gold="gold",
    rewards={"gold": lambda prompt, completion: 0.0},
    supports={"gold": (-3.0, 3.0)},
    bins={"gold": 5},
    prompts=lambda split, n, seed: [f"prompt {i}" for i in range(n)],
    max_tokens=8,
)
TASK = Task("made-up", WORLD)
SCALE = Scale(0, 0, 0, PROMPTS, 400, 4, ("base", "pargs", "args", "vas"), (1.0, 2.0, 4.0, 8.0))
SHARES = {"pargs": 0.6, "args": 0.2, "vas": 0.9, "best-of-4": 0.8}
"""What part of the optimum's gain √(2·KL) each method gets; the base's reward is normal."""


class FakeBench:
    """Answers as of a base of normal rewards; a method's KL is half its scaled β squared."""

    def __init__(self):
        self.scale, self.task, self.prints = SCALE, TASK, {"base": "0"}
        self.texts = WORLD.prompts("test", PROMPTS, 0)
        self.prompts = self.texts
        self.ran = []
        self.die_at = None

    def beta(self, method, scaled_beta):
        return scaled_beta

    def settings(self, method, scaled_beta):
        guidance = None if method.group == "base" else {"beta": scaled_beta}
        return {"world": "made-up", "guidance": guidance, "k": method.k}

    def run(self, method, scaled_beta):
        if len(self.ran) == self.die_at:
            raise KeyboardInterrupt
        self.ran.append((method.name, scaled_beta))
        draw = np.random.default_rng(len(self.ran))
        kl = 0.0 if method.group == "base" else scaled_beta**2 / 2
        gain = SHARES.get(method.name, 0.0) * np.sqrt(2 * kl)
        shape = PROMPTS, self.scale.answers
        return Run(
            method=method.name,
            scaled_beta=scaled_beta,
            settings=self.settings(method, scaled_beta),
            rewards={"gold": draw.normal(gain, 0.3, shape)},
            kl=np.full(shape, kl),
            tokens=np.full(shape, 8),
            words=np.full(shape, 8 - scaled_beta / 4),
            diversity=0.5 if method.name != "pargs-greedy" else float("nan"),
            flops=10.0 if method.group == "base" else 50.0,
            drawn_tokens=8.0,
            scorer_tokens=0.0,
            seconds=1.0,
            texts=["answer"] * PROMPTS,
        )

    def base_samples(self):
        gold = np.random.default_rng(0).normal(size=(PROMPTS, self.scale.base_samples))
        return {"gold": gold, "tokens": np.full(gold.shape, 8.0)}


def methods(*names):
    return [METHODS[name] for name in names]
