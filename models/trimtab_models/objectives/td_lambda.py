"""TD(λ) regression of a value, the estimator of VAS; TD(0) and CD-FUDGE are its extremes.

    L = E_t ( V(x, y^{1:t}) − G_t )²,   t = 1 .. T

with the λ-return G_t of `returns.py`, without gradient. For every λ its minimiser is V^π0, the mean
reward of the answers that continue a prefix; where rewards arrive before the end, the mean return
from y_t on, y_t's own reward included. λ = 0 is TD(0). λ = 1 is the squared error of every
prefix to the final reward: CD-FUDGE, except for the factor ½ and a mean instead of a sum over
tokens, which do not change the minimiser. Sources: Han et al., "Value Augmented Sampling for
Language Model Alignment and Personalization"; Mudgal et al., "Controlled Decoding from Language
Models" (arXiv 2310.17022), section 3, the loss called CD-FUDGE.
"""

from typing import ClassVar

from torch import Tensor

from trimtab_models.objectives.base import Objective
from trimtab_models.objectives.returns import check_decay, returns_to_go
from trimtab_models.rows import Rows


class TdLambda(Objective):
    """The objective over rollouts.

    Args:
        decay: λ, in [0, 1]; the VAS paper uses 0.95 to 0.98.
    """

    is_value: ClassVar[bool] = True
    to_go: ClassVar[bool] = True

    def __init__(self, decay: float = 0.95) -> None:
        self.decay = check_decay(decay)
        ends = {0.0: "TD(0)", 1.0: "CD-FUDGE"}
        self.name = ends.get(decay, f"TD(λ), λ={decay:g}")

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean squared error of every prefix's value to its λ-return; see Objective.loss."""
        values = rows.gather(outputs[..., 0])  # [rows, steps]
        targets = returns_to_go(values.detach(), rows, self.decay)
        return (values - targets)[rows.mask()].square().mean()
