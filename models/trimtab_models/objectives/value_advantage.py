"""Value-advantage Q: separate regressions of V and A, served as Q = V + A.

    L = E_t [ ( V(s_{t−1}) − G_{t−1} )² + ( sg V(s_{t−1}) + A(s_{t−1}, y_t) − G_{t−1} )² ]

for t = 1 .. T and s_t = (x, y^{1:t}), with the λ-return G of the states' V (`returns.py`). G_{t−1}
has the reward that y_t brings and none before it, so it is a return both of the state s_{t−1} and
of the token y_t in it: V learns its mean over tokens, V^π0, and A the difference of a token, so
that V + A = Q^π0. Unlike in a dueling head, A's error never changes V (sg: no gradient). Source:
Tang et al., "VA-learning as a more efficient alternative to Q-learning" (arXiv 2305.18161).
"""

from typing import ClassVar

from torch import Tensor

from trimtab_models.networks import Head
from trimtab_models.objectives.base import Objective
from trimtab_models.objectives.returns import check_decay, returns_to_go
from trimtab_models.rows import Rows


class ValueAdvantage(Objective):
    """The objective over rollouts.

    Args:
        decay: λ of the returns, in [0, 1].
    """

    head: ClassVar[Head] = "vocabulary+value"
    is_value: ClassVar[bool] = True
    to_go: ClassVar[bool] = True

    def __init__(self, decay: float = 0.95) -> None:
        self.decay = check_decay(decay)
        self.name = f"value-advantage Q, λ={decay:g}"

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean of both squared errors over all tokens; see Objective.loss."""
        values = rows.before(outputs[..., -1])  # [rows, steps]
        frozen = values.detach()
        targets = returns_to_go(frozen, rows, self.decay, before=True)
        q = frozen + rows.chosen(outputs[..., :-1])  # [rows, steps]
        errors = (values - targets).square() + (q - targets).square()
        return errors[rows.mask()].mean()

    def combine(self, outputs: Tensor) -> Tensor:
        """V + A; see Objective.combine."""
        return outputs[..., -1:] + outputs[..., :-1]
