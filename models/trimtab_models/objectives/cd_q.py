"""CD-Q: the Bellman loss of controlled decoding.

    L = E_rows ½ Σ_t ( V([x, y^t]) − v_t )²,   t = 1 .. T
    v_t = Σ_z π0(z | [x, y^t]) · V([x, y^t, z])   before the end, without gradient
    v_T = R

One forward over [x, y^t] gives V of all continuations [x, y^t, z]: entry z of a vocabulary head at
y^t is V([x, y^t, z]). So the backup and the fixed point, V^π0, are those of `q_values.QExact`; but
errors are summed over an answer and then averaged over answers, so that an answer's weight is its
length, independent of the batch. In the paper an answer ends only at EOS; here it also ends at the
length limit, since it has a reward. Source: Mudgal et al., "Controlled Decoding from Language
Models" (arXiv 2310.17022), section 3, the loss called CD-Q.
"""

from torch import Tensor

from trimtab_models.objectives.q_values import QExact
from trimtab_models.rows import Rows


class CdQ(QExact):
    """The objective over rollouts."""

    title = "CD-Q"

    def __init__(self) -> None:
        """Its targets are of one step, as in the paper."""
        super().__init__()

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean over rows of half the summed squared errors; see Objective.loss."""
        return 0.5 * (self.errors(outputs, rows, log_pi0) * rows.mask()).sum(-1).mean()
