"""Values compared with the mean return of completions: squared error, calibration and order."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from trimtab_models.validation.estimates import (
    Estimate,
    Figures,
    Floats,
    checked,
    mean_of,
    spearman,
)

BINS = 10


class Bin(Figures):
    """A bin of the reliability plot: mean prediction, mean return, its s.e., number of prefixes."""

    predicted: float
    returned: float
    standard_error: float | None
    n: int


class ValueAgreement(Figures):
    """The result of `value_agreement`.

    mse: mean (V − m)², where m is the mean return of a prefix's completions. mse_after_affine: the
    same after the best affine map of V, for scorers on their own scale.
    noise: mean squared standard error of m, the lower bound of the mse.
    r2: 1 − mse / variance of m; None if m is constant.
    slope, intercept: of the least-squares line m ≈ slope·V + intercept, 1 and 0 for calibrated
    values; None if V is constant.
    calibration_error: Σ_b (n_b/n)·|mean m − mean V| over `bins`, tenths of the prefixes by V.
    spearman: ρ(V, m); None if either is constant.
    """

    mse: Estimate
    mse_after_affine: Estimate
    noise: float
    r2: float | None
    slope: float | None
    intercept: float | None
    calibration_error: float
    spearman: float | None
    bins: list[Bin]


def value_agreement(
    predictions: ArrayLike,
    means: ArrayLike,
    standard_errors: ArrayLike,
    groups: Sequence[Hashable],
    *,
    seed: int = 0,
) -> ValueAgreement:
    """How well the scores of half-completed answers equal the mean return of their completions.

    The validation of Han et al., "Value Augmented Sampling", with the noise of the completions
    separated: E (V − m)² = E (V − V^π0)² + E se². The formulas are in `ValueAgreement`.

    Args:
        predictions: [prefixes] the scorer's V.
        means: [prefixes] mean return of the completions of each prefix.
        standard_errors: [prefixes] of these means.
        groups: [prefixes] their prompts, for the standard errors of the estimates.
        seed: of the bootstrap.

    Raises:
        ValueError: there are no prefixes, the lengths differ, or a number is not finite.
    """
    m, errors = np.asarray(means, dtype=float), np.asarray(standard_errors, dtype=float)
    v = np.concatenate(checked([[p] for p in np.asarray(predictions)], m, groups))
    if len(errors) != len(v) or not np.isfinite(errors).all():
        raise ValueError(
            f"expected a finite standard error for each of the {len(v)} prefixes; that needs at "
            "least two completions of each prefix."
        )
    varies, spread = bool(np.ptp(v) > 0), float(m.var())
    slope = float(np.cov(v, m, bias=True)[0, 1] / v.var()) if varies else 0.0
    intercept = float(m.mean() - slope * v.mean())
    squares = (v - m) ** 2
    bins = _bins(v, m)
    return ValueAgreement(
        mse=mean_of(squares, groups, seed=seed),
        mse_after_affine=mean_of((slope * v + intercept - m) ** 2, groups, seed=seed),
        noise=float((errors**2).mean()),
        r2=1 - float(squares.mean()) / spread if spread > 0 else None,
        slope=slope if varies else None,
        intercept=intercept if varies else None,
        calibration_error=sum(b.n * abs(b.returned - b.predicted) for b in bins) / len(v),
        spearman=spearman(v, m),
        bins=bins,
    )


def _bins(v: Floats, m: Floats) -> list[Bin]:
    edges = np.quantile(v, np.arange(1, BINS) / BINS)
    numbers = np.searchsorted(edges, v, side="right")  # equal predictions share a bin
    parts = [np.flatnonzero(numbers == number) for number in np.unique(numbers)]
    return [
        Bin(
            predicted=float(v[part].mean()),
            returned=float(m[part].mean()),
            standard_error=float(m[part].std(ddof=1) / len(part) ** 0.5) if len(part) > 1 else None,
            n=len(part),
        )
        for part in parts
    ]
