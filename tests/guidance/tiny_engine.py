"""The tiny world as an engine for searches: in memory, exact, and counting every token."""

import math
import random

from trimtab.search import Drawn, Problem, ScoredSequence, drive, start
from trimtab_lab.worlds.tiny import EOS, LENGTH, VOCABULARY, ended


class TinyEngine:
    """Draws from the world's base after `prompt`; `value` of a completion's prefix is the score."""

    def __init__(self, world, prompt, value):
        self.world, self.prompt, self.value = world, prompt, value
        self.drawn = self.read = self.scored = self.batches = 0
        self.scored_sequences = []  # every sequence that was scored
        self.policy = {}

    def next(self, prefix):
        """π0(· | prefix), [vocab]."""
        if prefix not in self.policy:
            reach = self.world.reach(self.prompt, prefix)
            self.policy[prefix] = [
                self.world.reach(self.prompt, (*prefix, v)) / reach for v in range(VOCABULARY)
            ]
        return self.policy[prefix]

    def guided(self, prefix, beta):
        weights = [
            p * math.exp(beta * self.value((*prefix, v))) for v, p in enumerate(self.next(prefix))
        ]
        return [w / sum(weights) for w in weights]

    def continuation(self, prefix, tokens, seed, beta=0.0, until=""):
        """`until`: a text, where a token's text is its number."""
        rng = random.Random(seed)
        out = ()
        while len(out) < tokens and not ended(prefix + out) and not self.has(out, until):
            policy = self.guided(prefix + out, beta) if beta else self.next(prefix + out)
            out += (rng.choices(range(VOCABULARY), policy)[0],)
        return out

    def has(self, out, until):
        return bool(until) and until in "".join(map(str, out))

    def draw(self, requests, beta=0.0):
        self.batches += 1
        answers = []
        for request in requests:
            prefix = self.completion(request.prefix)
            assert not ended(prefix), "what has ended is not extended"
            strength = beta if request.guided else 0.0
            out = self.continuation(
                prefix, request.max_tokens, request.seed, strength, request.until
            )
            top = sorted(enumerate(self.next(prefix)), key=lambda pair: -pair[1])[: request.top]
            spent = 7 * len(out) if request.guided else 0  # whatever: it must be counted
            self.drawn, self.read = self.drawn + len(out), self.read + len(request.prefix)
            self.scored += spent
            logs = [(token, math.log(p)) for token, p in top]
            answers.append(Drawn(out, EOS in out, logs, len(out) / 8, len(request.prefix), spent))
        return answers

    def score(self, requests):
        self.batches += 1
        answers = []
        for _, request in requests:
            prefix = self.completion(request.sequence)
            self.scored_sequences.append(prefix)
            self.scored += len(prefix)
            value = self.value(prefix)
            answers.append(ScoredSequence(value, {"exact": value}, len(prefix)))
        return answers

    def completion(self, sequence):
        assert sequence[: len(self.prompt)] == self.prompt
        return sequence[len(self.prompt) :]

    def problem(self, guidance, *, seed=0, index=0):
        return Problem(self.prompt, LENGTH, frozenset({EOS}), guidance, seed, index)

    def search(self, params, guidance, *, seed=0):
        search = start(params, self.problem(guidance, seed=seed))
        [result] = drive([search], lambda requests: self.draw(requests, guidance.beta), self.score)
        return result
