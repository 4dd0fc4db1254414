"""Q heads: the value of every next token from one forward over the prefix.

    L = E_t ( Q(s_{t−1}, y_t) − v(s_t) )²,   s_t = (x, y^{1:t}),   t = 1 .. T

where the backup v(s_t), without gradient, is the reward R for the ended answer s_T, and before it

    exact     Σ_v π0(v | s_t) · Q(s_t, v)
    sampled   Q(s_t, y_{t+1})

The exact backup has less noise but needs the base's probabilities; both have the fixed point
Q^π0(s, v) = V^π0(s + v). Where rewards arrive before the end, Q is the return from the token on,
with the reward that it brings: the target is r_t + v(s_t). The dueling head splits
Q(s, v) = V(s) + A(s, v) − mean_v A(s, ·) and is trained with the exact backup. Sources: Sutton and
Barto, "Reinforcement Learning", 2nd edition, eq. 6.9 (expected Sarsa) and 6.7 (Sarsa); Wang et al.,
"Dueling Network Architectures for Deep Reinforcement Learning" (ICML 2016), eq. 9.
"""

from typing import ClassVar

from torch import Tensor

from trimtab_models.networks import Head
from trimtab_models.objectives.base import Objective
from trimtab_models.objectives.returns import returns_to_go
from trimtab_models.rows import Rows


class QExact(Objective):
    """The objective over rollouts, with the exact backup."""

    name = "Q, exact backup"
    head: ClassVar[Head] = "vocabulary"
    is_value: ClassVar[bool] = True
    to_go: ClassVar[bool] = True
    reads_base: ClassVar[bool] = True

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean squared error over all tokens; see Objective.loss."""
        return self.errors(outputs, rows, log_pi0)[rows.mask()].mean()

    def errors(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None) -> Tensor:
        """(Q(s_{t−1}, y_t) − v(s_t))² of every token, [rows, steps]; not masked yet."""
        q = self.combine(outputs)  # [rows, length, vocab]
        states = self.state_values(q.detach(), rows, log_pi0)  # [rows, steps]
        targets = returns_to_go(states, rows, 0.0, before=True)
        return (rows.chosen(q) - targets).square()

    def state_values(self, q: Tensor, rows: Rows, log_pi0: Tensor | None) -> Tensor:
        """v of the states before each token, [rows, steps]."""
        if log_pi0 is None:
            raise ValueError(f"{self.name} needs log π0 of every next token; pass log_pi0.")
        return rows.before((log_pi0.exp() * q).sum(-1))


class QSampled(QExact):
    """The objective over rollouts, with the sampled backup."""

    name = "Q, sampled backup"
    reads_base: ClassVar[bool] = False

    def state_values(self, q: Tensor, rows: Rows, log_pi0: Tensor | None) -> Tensor:
        """Q(s_{t−1}, y_t) of the completion's tokens, [rows, steps]."""
        return rows.chosen(q)


class DuelingQ(QExact):
    """The objective over rollouts for a head with A and V, with the exact backup."""

    name = "dueling Q"
    head: ClassVar[Head] = "vocabulary+value"

    def combine(self, outputs: Tensor) -> Tensor:
        """V + A − mean A; see Objective.combine."""
        advantages = outputs[..., :-1]
        return outputs[..., -1:] + advantages - advantages.mean(-1, keepdim=True)
