"""Search methods on the tiny world, where every draw, value and expectation is known exactly."""

import math
import random
import statistics
from functools import cache
from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest

from tiny_engine import TinyEngine
from trimtab.params import GuidanceParams
from trimtab.sampling import sample_seed
from trimtab.search import (
    Beam,
    BestOfN,
    Blockwise,
    Commit,
    Draw,
    Mcts,
    Score,
    Smc,
    TextBlock,
    drive,
    start,
)
from trimtab_lab.worlds.tiny import EOS, LENGTH, PROMPTS, VOCABULARY, Tiny, ended, reward

SMC = import_module("trimtab.search.smc")
BETA = 2.0
BASE = GuidanceParams(scorers={"exact": 1.0}, beta=0.0)
STEERED = GuidanceParams(scorers={"exact": 1.0}, beta=BETA)
ALL = [
    BestOfN(n=5),
    Blockwise(n=4, block=2),
    Beam(width=2, expand=3, block=1),
    Smc(particles=6, block=1, threshold=0.9),
    Smc(particles=6, block=TextBlock(until="1", tokens=2)),
    Mcts(simulations=5),
]


@pytest.fixture(scope="module")
def world():
    return Tiny()


@pytest.fixture(params=PROMPTS, ids=str)
def engine(world, request):
    """With exact values V(prefix) = E R."""
    return TinyEngine(world, request.param, lambda y: world.value(request.param, y))


def final_rewards(prompt, noise):
    """The reward of what has ended; of the rest, whatever `noise` says."""
    return lambda y: reward(prompt, y) if ended(y) else noise(y)


@pytest.mark.parametrize("guidance", [BASE, STEERED], ids=["base", "guided"])
def test_best_of_n_is_the_best_of_n_draws(engine, guidance):
    places = set()
    for seed in range(20):
        result = engine.search(BestOfN(n=8), guidance, seed=seed)
        draws = [
            engine.continuation((), LENGTH, sample_seed(seed, 0, i), guidance.beta)
            for i in range(8)
        ]
        values = [engine.value(y) for y in draws]
        best = max(range(8), key=values.__getitem__)
        places.add(best)
        assert tuple(result.token_ids) == draws[best]
        assert result.value == result.scores["exact"] == values[best]
        assert result.facts["values"] == values
        assert result.finish_reason == ("stop" if EOS in draws[best] else "length")
        assert result.kl == (len(draws[best]) / 8)
    assert len(places) > 3, "the first draw must not always be the best"


def beam_reference(engine, width, expand, block, seed):
    """The definition, one draw at a time."""
    until = "" if isinstance(block, int) else block.until
    block = block if isinstance(block, int) else block.tokens
    seeds = (sample_seed(seed, 0, i) for i in range(10_000))
    beams = [()]
    while not all(map(ended, beams)):
        pool = [y for y in beams if ended(y)]
        for y in beams:
            if not ended(y):
                for _ in range(expand if y else width * expand):
                    tokens = min(block, LENGTH - len(y))
                    pool.append(y + engine.continuation(y, tokens, next(seeds), until=until))
        pool = sorted(dict.fromkeys(pool), key=engine.value, reverse=True)
        beams = pool[:width]
    return beams


@pytest.mark.parametrize(
    ("params", "width", "expand"),
    [
        (Beam(width=3, expand=2, block=1), 3, 2),
        (Beam(width=2, expand=4, block=3), 2, 4),
        (Blockwise(n=4, block=1), 1, 4),
        (Blockwise(n=3, block=2), 1, 3),
        (Beam(width=2, expand=3, block=TextBlock(until="2", tokens=3)), 2, 3),
        (Blockwise(n=3, block=TextBlock(until="3")), 1, 3),
    ],
    ids=str,
)
def test_beams_are_the_definition(engine, params, width, expand):
    answers = set()
    for seed in range(20):
        result = engine.search(params, BASE, seed=seed)
        beams = beam_reference(engine, width, expand, params.block, seed)
        assert tuple(result.token_ids) == beams[0]
        assert result.facts["values"] == [engine.value(y) for y in beams]
        answers.add(beams[0])
    assert len(answers) > 1


def test_a_block_ends_with_the_token_that_completes_the_text(engine):
    """Each block that is kept has the text at its end only, or the most tokens, or ends."""
    block, blocks = TextBlock(until="2", tokens=3), []
    for seed in range(40):
        search = start(Blockwise(n=2, block=block), engine.problem(BASE, seed=seed))
        before, answers = 0, None
        while True:
            try:
                yielded = search.send(answers)
            except StopIteration:
                break
            if isinstance(yielded, Commit):
                blocks.append(yielded.token_ids[before:])
                before, answers = len(yielded.token_ids), None
            elif isinstance(yielded[0], Draw):
                answers = engine.draw(yielded)
            else:
                answers = engine.score([(0, request) for request in yielded])
    assert all(2 not in kept[:-1] for kept in blocks)
    assert sum(kept[-1] == 2 for kept in blocks) > 3


def test_one_block_of_everything_is_best_of_n(engine):
    for seed in range(10):
        whole = engine.search(BestOfN(n=6), BASE, seed=seed)
        for params in (Blockwise(n=6, block=LENGTH), Beam(width=2, expand=3, block=LENGTH)):
            assert engine.search(params, BASE, seed=seed).token_ids == whole.token_ids


# Twisted SMC: E[Ẑ] = E_π0 exp(β·R), whatever is said of unfinished answers.

RUNS = 1200


def estimates(world, prompt, value, threshold=1.0):
    """(Ẑ, reward of the sample) of many runs, and how often they resampled."""
    engine = TinyEngine(world, prompt, cache(value))
    params = Smc(particles=4, block=1, threshold=threshold)
    runs = [engine.search(params, STEERED, seed=seed) for seed in range(RUNS)]
    assert all(r.value == reward(prompt, tuple(r.token_ids)) for r in runs)
    resamplings = statistics.fmean(r.facts["resamplings"] for r in runs)
    return [(math.exp(r.facts["log_z"]), r.value) for r in runs], resamplings


def exact(world, prompt):
    """Z, and E of the reward under π0·exp(β·R)/Z."""
    rewards, p = world.returns(prompt, ())
    weights = p * (BETA * rewards).exp()
    return float(weights.sum()), float(weights @ rewards / weights.sum())


def deviation(sample, expected):
    """In standard errors."""
    error = statistics.stdev(sample) / len(sample) ** 0.5
    return (statistics.fmean(sample) - expected) / error


def noise(y):
    return random.Random(str(y)).uniform(-1.5, 1.5)


@pytest.mark.slow
@pytest.mark.parametrize("twist", ["exact", "wrong"])
def test_smc_is_unbiased(world, twist):
    for prompt in PROMPTS:
        soft = lambda y, x=prompt: world.soft_value(x, y, 1 / BETA)  # noqa: E731
        value = soft if twist == "exact" else final_rewards(prompt, noise)
        runs, resamplings = estimates(world, prompt, value)
        z, optimum = exact(world, prompt)
        assert resamplings > 0.5, "or nothing is tested"
        assert abs(deviation([estimate for estimate, _ in runs], z)) < 3
        # The sample too: E[Ẑ·f(y)] = Z·E f under the optimum.
        assert abs(deviation([estimate * r for estimate, r in runs], z * optimum)) < 3


@pytest.mark.slow
def test_smc_without_its_correction_is_biased(world, monkeypatch):
    """The control: weights are reset although the particles were not drawn by them."""
    monkeypatch.setattr(SMC, "systematic", lambda weights, rng: range(len(weights)))
    prompt = PROMPTS[0]
    runs, _ = estimates(world, prompt, final_rewards(prompt, noise))
    assert abs(deviation([estimate for estimate, _ in runs], exact(world, prompt)[0])) > 5


def test_systematic_resampling_keeps_expectations():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(7))
    counts = np.array([np.bincount(SMC.systematic(weights, rng), minlength=7) for _ in range(4000)])
    assert (counts.sum(1) == 7).all()
    assert (np.abs(counts - 7 * weights) < 1).all()  # what makes it systematic
    error = counts.std(0) / len(counts) ** 0.5
    assert (np.abs(counts.mean(0) - 7 * weights) < 4 * error + 1e-12).all()


# Tree search.


@pytest.mark.parametrize("beta", [-3.0, 0.0, 1.0, 8.0])
@pytest.mark.parametrize(("k", "mass"), [(2, 1.0), (4, 1.0), (4, 0.8)])
def test_mcts_without_simulations_is_the_value_guided_argmax(engine, beta, k, mass):
    guidance = GuidanceParams(scorers={"exact": 1.0}, beta=beta, k=k, mass=mass)
    y = ()
    while not ended(y):
        candidates, reached = [], 0.0
        for v in sorted(range(VOCABULARY), key=lambda v: -engine.next(y)[v])[:k]:
            if candidates and reached >= mass < 1:
                break
            candidates.append(v)
            reached += engine.next(y)[v]
        y += (
            max(
                candidates,
                key=lambda v: math.log(engine.next(y)[v]) + beta * engine.value((*y, v)),
            ),
        )
    result = engine.search(Mcts(simulations=0), guidance)
    assert tuple(result.token_ids) == y
    assert result.value == engine.value(y)


def mcts_reference(engine, simulations, c, beta):
    """The textbook: every node that is reached is expanded at once; Q kept by edge."""
    visits, total, children = {}, {}, {}

    def expand(y):
        if y not in children and not ended(y):
            policy = engine.guided(y, beta)
            children[y] = {(*y, v): policy[v] for v in range(VOCABULARY)}

    def score(y, child):
        n = visits.get(child, 0)
        q = total[child] / n if n else engine.value(child)
        return q + c * children[y][child] * math.sqrt(max(visits.get(y, 0), 1)) / (1 + n)

    root, chosen = (), []
    while not ended(root):
        expand(root)
        for _ in range(simulations):
            path = [root]
            while visits.get(path[-1]) and not ended(path[-1]):
                path.append(max(children[path[-1]], key=lambda child: score(path[-1], child)))
            expand(path[-1])
            for y in path:
                visits[y] = visits.get(y, 0) + 1
                total[y] = total.get(y, 0.0) + engine.value(path[-1])
        root = max(children[root], key=lambda y: (visits.get(y, 0), children[root][y]))
        chosen.append(visits.get(root, 0))
    return root, chosen


@pytest.mark.parametrize("simulations", [1, 7, 40])
@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_mcts_is_the_textbook(engine, simulations, beta):
    guidance = GuidanceParams(scorers={"exact": 1.0}, beta=beta, mass=1.0)
    result = engine.search(Mcts(simulations=simulations, exploration=1.5), guidance)
    answer, visits = mcts_reference(engine, simulations, 1.5, beta)
    assert tuple(result.token_ids) == answer
    assert result.facts["visits"] == visits


def test_simulations_see_further_than_the_next_token(world):
    """With nothing said of unfinished answers, only a search can find the good ones."""

    def total(simulations):
        return sum(
            TinyEngine(world, prompt, final_rewards(prompt, lambda y: 0.0))
            .search(Mcts(simulations=simulations, exploration=0.5), BASE)
            .value
            for prompt in PROMPTS
        )

    assert total(128) > total(0) + 0.2


# What all of them keep.


@pytest.mark.parametrize("guidance", [BASE, STEERED], ids=["base", "guided"])
@pytest.mark.parametrize("params", ALL, ids=lambda p: p.method)
def test_every_token_is_counted(engine, params, guidance):
    for seed in range(5):
        before = engine.drawn, engine.read, engine.scored
        usage = engine.search(params, guidance, seed=seed).usage
        assert usage.prompt_tokens == len(engine.prompt)
        assert (
            before[0] + usage.drawn_tokens,
            before[1] + usage.read_tokens,
            before[2] + usage.scorer_tokens,
        ) == (engine.drawn, engine.read, engine.scored)
    assert min(engine.drawn, engine.read, engine.scored) > 0


@pytest.mark.parametrize("params", ALL, ids=lambda p: p.method)
def test_what_is_committed_stays(engine, params):
    """Commits grow, and the answer begins with each of them."""
    for seed in range(5):
        search = start(params, engine.problem(BASE, seed=seed))
        commits, answers = [()], None
        while True:
            try:
                yielded = search.send(answers)
            except StopIteration as end:
                result = end.value
                break
            if isinstance(yielded, Commit):
                commits.append(yielded.token_ids)
                answers = None
            elif isinstance(yielded[0], Draw):
                answers = engine.draw(yielded)
            else:
                assert all(isinstance(request, Score) for request in yielded)
                answers = engine.score([(0, request) for request in yielded])
        answer = tuple(result.token_ids)
        assert all(later[: len(earlier)] == earlier for earlier, later in pairwise(commits))
        assert answer[: len(commits[-1])] == commits[-1]
        if params.method in ("blockwise", "mcts"):
            assert commits[-1] == answer
        assert ended(answer)


@pytest.mark.parametrize("params", ALL, ids=lambda p: p.method)
def test_searches_side_by_side_are_searches_alone(engine, params):
    def searches():
        return [start(params, engine.problem(BASE, seed=3, index=i)) for i in range(4)]

    alone, batches = [], []
    for search in searches():
        before = engine.batches
        alone += drive([search], engine.draw, engine.score)
        batches.append(engine.batches - before)
    before = engine.batches
    assert drive(searches(), engine.draw, engine.score) == alone
    # A round's requests are one batch; draws and scores of unlike rounds may make two.
    assert engine.batches - before <= 2 * max(batches)
    assert len({result.usage.drawn_tokens for result in alone}) > 1 or params.method == "mcts"


@pytest.mark.parametrize("params", ALL[:-1], ids=lambda p: p.method)
def test_other_seeds_are_other_searches(engine, params):
    answers = {tuple(engine.search(params, BASE, seed=seed).token_ids) for seed in range(12)}
    assert len(answers) > 1
