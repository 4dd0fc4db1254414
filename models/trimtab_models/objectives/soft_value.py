"""Soft value: V(prefix) = η · log E[ exp(R/η) | prefix ], by a regression with an exponential loss.

    L = E_t η² · ( exp(z_t) − z_t − 1 ),   z_t = (G_t − V(x, y^{1:t})) / η,   t = 1 .. T

Its derivative is 0 where E exp(z_t) = 1, that is at V = η · log E exp(G_t/η): one sample for each
prefix is enough, and no logarithm of a mean is estimated. η → ∞ is ½(G_t − V)². The target is the
reward (soft value), the next prefix's own V without gradient (soft TD), or a mixture:

    exp(G_t/η) = (1 − λ) · exp(V(x, y^{1:t+1})/η) + λ · exp(G_{t+1}/η),   G_T = R

Where rewards arrive before the end, G_t is the return from y_t on, y_t's own reward included; a
factor of the reward so far is common to all candidates of a step, so β = 1/η stays optimal.

It is exact for every λ, because the loss also takes a mean of exp(G_t/η). Served at β = 1/η,
π0 · exp(V/η) maximises the reward under a KL penalty of weight η. η < 0 is the soft minimum, for a
negative β.

Above z = clip the exponential is replaced by its tangent, so that early errors cannot explode. The
minimum does not change unless returns of probability below exp(−clip) matter: there E exp(z) = 1,
hence z ≤ −log p of that return. Sources: Garg et al., "Extreme Q-Learning: MaxEnt RL without
Entropy" (arXiv 2301.02328), the Gumbel regression; Zhou et al., "Q♯: Provably Optimal
Distributional RL for LLM Post-Training" (arXiv 2502.20548), for its use in decoding.
"""

from typing import ClassVar

import torch
from torch import Tensor

from trimtab_models.objectives.base import Objective
from trimtab_models.objectives.returns import check_decay, lambda_returns
from trimtab_models.rows import Rows


class SoftValue(Objective):
    """The objective over rollouts.

    Args:
        eta: η in units of the reward, not 0.
        decay: λ; 1 is the regression onto rewards, 0 is soft TD.
        clip: largest z of the exponential, above 0; the tangent follows.
    """

    to_go: ClassVar[bool] = True

    def __init__(self, eta: float = 1.0, decay: float = 1.0, clip: float = 7.0) -> None:
        if not eta:
            raise ValueError("eta is the temperature of the soft value and cannot be 0")
        if not clip > 0:
            raise ValueError(f"clip is the largest exponent and must be above 0, not {clip}")
        self.eta, self.decay, self.clip = eta, check_decay(decay), clip
        self.name = f"soft value, η={eta:g}" + (f", λ={decay:g}" if decay < 1 else "")

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean over all prefixes, in squared units of the reward; see Objective.loss."""
        values = rows.gather(outputs[..., 0]).float()  # [rows, steps]
        z = (self.returns(values.detach(), rows) - values) / self.eta
        low = z.clamp(max=self.clip)
        growth = low.exp() * (1 + z - low)  # the tangent where z > low
        return self.eta**2 * (growth - z - 1)[rows.mask()].mean()

    def returns(self, values: Tensor, rows: Rows) -> Tensor:
        """G of every prefix, mixed as exponentials: [rows, steps]."""
        if self.decay == 1:
            return rows.to_go()
        so_far = rows.so_far()  # with it, values are of whole returns, as in `returns_to_go`
        logs, last = (values + so_far) / self.eta, rows.labels / self.eta
        # Exponentials of the difference to a row's maximum, as in a log-sum-exp.
        top = torch.maximum(logs.amax(1), last)
        mixed = lambda_returns(
            (logs - top[:, None]).exp(), (last - top).exp(), rows.completions, self.decay
        )
        logs = mixed.clamp(min=torch.finfo(mixed.dtype).tiny).log() + top[:, None]
        return self.eta * logs - so_far
