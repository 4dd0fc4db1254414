"""Monte Carlo tree search over tokens with the value estimator (PPO-MCTS, arXiv 2309.15028).

    nodes       prefixes; edges are the candidates of token-level guidance (k, mass)
    priors      P(v) ∝ π0(v | prefix)·exp(β·s(prefix + v)): the guided policy, at β = 0 the base
    selection   argmax_v Q(v) + c·P(v)·√N(prefix)/(1 + N(v))                          (PUCT)
    values      a new node has value s; Q is the mean value of all visits below an edge, and s for
                an edge without visits
    choice      the next token is the most visited edge, ties by prior; its subtree is kept

With no simulations the choice is argmax_v log π0(v) + β·s(prefix + v): greedy guidance.

A node is expanded when a visit first passes through it, so a simulation is at most one draw of one
token and one batch of scores. Temperature has no effect.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from trimtab.search.core import Commit, Draw, Path, Problem, Round, Rounds, scored
from trimtab.search.params import Mcts


@dataclass
class Node:
    """A prefix of the answer."""

    path: Path
    prior: float
    visits: int = 0
    total: float = 0.0  # sum of the values of all its visits
    children: "list[Node] | None" = None

    @property
    def q(self) -> float:
        """Mean value of its visits; its own value before the first."""
        return self.total / self.visits if self.visits else self.path.value

    def select(self, exploration: float) -> "Node":
        """The child to visit."""
        assert self.children is not None
        scale = exploration * math.sqrt(max(self.visits, 1))
        return max(self.children, key=lambda n: n.q + scale * n.prior / (1 + n.visits))


def mcts(params: Mcts, problem: Problem) -> Rounds:
    """One token after another, each after `simulations` simulations."""
    seeds = problem.seeds()
    root, visits = Node(Path(), 1.0), []
    while problem.is_open(root.path):
        yield from expand(root, problem, next(seeds))
        for _ in range(params.simulations):
            visited = [root]
            while visited[-1].visits and problem.is_open(visited[-1].path):
                yield from expand(visited[-1], problem, next(seeds))
                visited.append(visited[-1].select(params.exploration))
            for node in visited:
                node.visits += 1
                node.total += visited[-1].path.value
        assert root.children is not None
        root = max(root.children, key=lambda node: (node.visits, node.prior))
        visits.append(root.visits)
        yield Commit(root.path.token_ids)
    return root.path, {"visits": visits}


def expand(node: Node, problem: Problem, seed: int) -> Generator[Round, Any, None]:
    """Give a node its children: a round for the candidates, a round for their values."""
    if node.children is not None:
        return
    guidance = problem.guidance
    assert isinstance(guidance.k, int), "a search checks this when it starts"
    prefix = problem.prompt + node.path.token_ids
    [drawn] = yield [Draw(prefix, 1, seed, top=guidance.k, context=problem.context)]
    logprobs: dict[int, float] = {}
    reached = 0.0
    for token, logprob in drawn.top:  # as candidates.select
        if logprobs and (reached >= guidance.mass < 1 or logprob == -math.inf):
            break
        logprobs[token] = logprob
        reached += math.exp(logprob)
    paths = [
        Path((*node.path.token_ids, token), token in problem.stop_tokens) for token in logprobs
    ]
    paths = yield from scored(problem, paths)
    logits = [
        logprob + guidance.beta * path.value
        for logprob, path in zip(logprobs.values(), paths, strict=True)
    ]
    top = max(logits)
    total = sum(math.exp(logit - top) for logit in logits)
    node.children = [
        Node(path, math.exp(logit - top) / total) for path, logit in zip(paths, logits, strict=True)
    ]
