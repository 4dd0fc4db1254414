"""Twisted sequential Monte Carlo (Zhao et al., arXiv 2404.17546), block by block.

    ψ(y) = exp(β·s(y)),   ψ(bare prompt) = 1
    w_i ← w_i · ψ(y_i + z_i)/ψ(y_i),   z_i ~ π0(block | y_i)
    log Z ← log Z + log mean_i w_i and w ← 1 wherever particles are resampled ∝ w; at the end too

so that E[Ẑ] = E_π0[exp(β·s(y))] for any scores of unfinished answers: those ratios cancel, and the
scores only decide where particles are spent. Resampling is systematic, which is unbiased, and
happens when ESS = (Σ w)²/Σ w² falls below threshold·particles.
"""

import numpy as np
import numpy.typing as npt

from trimtab.search.core import Path, Problem, Rounds, scored
from trimtab.search.params import Smc

Floats = npt.NDArray[np.float64]


def smc(params: Smc, problem: Problem) -> Rounds:
    """Two rounds per block: draws of the unfinished particles, then their scores."""
    n, beta, seeds = params.particles, problem.guidance.beta, problem.seeds()
    rng = np.random.default_rng((problem.seed, problem.index))
    particles, log_w, log_z = [Path()] * n, np.zeros(n), 0.0
    history: list[float] = []
    resamplings = 0
    while moving := [i for i, path in enumerate(particles) if problem.is_open(path)]:
        drawn = yield [
            problem.draw(particles[i], params.block, next(seeds), guided=False) for i in moving
        ]
        moved = yield from scored(
            problem, [particles[i].then(one) for i, one in zip(moving, drawn, strict=True)]
        )
        for i, path in zip(moving, moved, strict=True):
            log_w[i] += beta * (path.value - particles[i].value)
            particles[i] = path
        weights = normalised(log_w)
        history.append(1 / float(weights @ weights))
        if history[-1] < params.threshold * n and any(map(problem.is_open, particles)):
            log_z += log_mean(log_w)
            particles = [particles[i] for i in systematic(weights, rng)]
            log_w, resamplings = np.zeros(n), resamplings + 1
    log_z += log_mean(log_w)
    chosen = particles[rng.choice(n, p=normalised(log_w))]
    return chosen, {"log_z": log_z, "ess": history, "resamplings": resamplings}


def log_mean(log_w: Floats) -> float:
    """log mean_i exp(log_w_i)."""
    return float(np.logaddexp.reduce(log_w) - np.log(len(log_w)))


def normalised(log_w: Floats) -> Floats:
    """Weights that sum to 1, [particles]."""
    w = np.exp(log_w - log_w.max())
    return w / w.sum()


def systematic(weights: Floats, rng: np.random.Generator) -> list[int]:
    """Indices of the resampled particles, [particles]: i occurs n·w_i times in expectation.

    One uniform number u gives all: points (u + j)/n on the cumulative weights.
    """
    n = len(weights)
    edges = weights.cumsum()
    edges[-1] = 1.0  # rounding may have changed it
    points = (rng.random() + np.arange(n)) / n
    return np.searchsorted(edges, points, side="right").tolist()
