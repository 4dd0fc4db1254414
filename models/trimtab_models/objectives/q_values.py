"""Q heads: the value of every next token from one forward over the prefix.

    L = E_t ( Q(s_{t−1}, y_t) − G_{t−1} )²,   s_t = (x, y^{1:t}),   t = 1 .. T

with the λ-return G of `returns.py`, without gradient, of the values v of the states: the reward R
for the ended answer s_T, and before it

    exact     v(s_t) = Σ_v π0(v | s_t) · Q(s_t, v)
    sampled   v(s_t) = Q(s_t, y_{t+1})

λ = 0 is the one-step target v(s_t). The exact backup has less noise but needs the base's
probabilities; for every λ both have the fixed point Q^π0(s, v) = V^π0(s + v). The dueling head
splits Q and is trained with the exact backup:

    sum       Q(s, v) = V(s) + A(s, v)
    centred   Q(s, v) = V(s) + A(s, v) − mean_v A(s, ·)

As a sum, a token that the data never shows keeps A = 0, its start, and so the value of its state;
centred, its Q moves with the other tokens' A. Where rewards arrive before the end, Q is the return
from the token on, with the reward that it brings. Sources: Han et al., "Value Augmented Sampling
for Language Model Alignment and Personalization", appendix B.2 (TD(λ) targets, both backups, the
sum); Sutton and Barto, "Reinforcement Learning", 2nd edition, eq. 6.9 (expected Sarsa) and 6.7
(Sarsa); Wang et al., "Dueling Network Architectures for Deep Reinforcement Learning" (ICML 2016),
eq. 9 (centred).
"""

from typing import ClassVar

from torch import Tensor

from trimtab_models.networks import Head
from trimtab_models.objectives.base import Objective
from trimtab_models.objectives.returns import check_decay, returns_to_go
from trimtab_models.rows import Rows


class QExact(Objective):
    """The objective over rollouts, with the exact backup.

    Args:
        decay: λ, in [0, 1]; the VAS paper uses 0.95.
    """

    title: ClassVar[str] = "Q, exact backup"
    head: ClassVar[Head] = "vocabulary"
    is_value: ClassVar[bool] = True
    to_go: ClassVar[bool] = True
    reads_base: ClassVar[bool] = True

    def __init__(self, decay: float = 0.0) -> None:
        self.decay = check_decay(decay)
        self.name = self.title + (f", λ={decay:g}" if decay else "")

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean squared error over all tokens; see Objective.loss."""
        return self.errors(outputs, rows, log_pi0)[rows.mask()].mean()

    def errors(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None) -> Tensor:
        """(Q(s_{t−1}, y_t) − G_{t−1})² of every token, [rows, steps]; not masked yet."""
        q = self.combine(outputs)  # [rows, length, vocab]
        states = self.state_values(q.detach(), rows, log_pi0)  # [rows, steps]
        targets = returns_to_go(states, rows, self.decay, before=True)
        return (rows.chosen(q) - targets).square()

    def state_values(self, q: Tensor, rows: Rows, log_pi0: Tensor | None) -> Tensor:
        """v of the states before each token, [rows, steps]."""
        if log_pi0 is None:
            raise ValueError(f"{self.name} needs log π0 of every next token; pass log_pi0.")
        return rows.before((log_pi0.exp() * q).sum(-1))


class QSampled(QExact):
    """The objective over rollouts, with the sampled backup."""

    title: ClassVar[str] = "Q, sampled backup"
    reads_base: ClassVar[bool] = False

    def state_values(self, q: Tensor, rows: Rows, log_pi0: Tensor | None) -> Tensor:
        """Q(s_{t−1}, y_t) of the completion's tokens, [rows, steps]."""
        return rows.chosen(q)


class DuelingQ(QExact):
    """The objective over rollouts for a head with A and V, with the exact backup.

    Args:
        decay: as for QExact.
        centred: whether the mean of A is subtracted.
    """

    title: ClassVar[str] = "dueling Q"
    head: ClassVar[Head] = "vocabulary+value"

    def __init__(self, decay: float = 0.0, *, centred: bool = False) -> None:
        super().__init__(decay)
        self.centred = centred
        self.name += ", centred" if centred else ""

    def combine(self, outputs: Tensor) -> Tensor:
        """V + A, or V + A − mean A; see Objective.combine."""
        q = outputs[..., -1:] + outputs[..., :-1]
        return q - outputs[..., :-1].mean(-1, keepdim=True) if self.centred else q
