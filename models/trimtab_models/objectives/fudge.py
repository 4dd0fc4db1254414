"""FUDGE: a classifier of prefixes that predicts whether the finished answer has an attribute.

    L = − E_t [ a · log σ(f(x, y^{1:t})) + (1 − a) · log(1 − σ(f(x, y^{1:t}))) ],   t = 1 .. T

for the attribute a ∈ {0, 1} of the whole answer. Its minimiser is σ(f) = P(a = 1 | prefix) under
π0; the served score is log σ(f), for log π0 + β·log P. Source: Yang and Klein, "FUDGE: Controlled
Text Generation With Future Discriminators" (NAACL 2021), section 3.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from trimtab_models.objectives.base import Objective
from trimtab_models.rows import Rows


class Fudge(Objective):
    """The objective over rollouts.

    Args:
        threshold: an answer has the attribute if its reward is above this; by default the reward is
            the attribute, 0 or 1.
    """

    name = "FUDGE"

    def __init__(self, threshold: float | None = None) -> None:
        self.threshold = threshold

    def collate(self, items: Sequence[Any], pad_id: int) -> Rows:
        """Rows whose labels are 0 or 1.

        Raises:
            ValueError: there is no threshold, and a reward is neither 0 nor 1.
        """
        rows = super().collate(self.attributed(items), pad_id)
        if self.threshold is not None:
            return rows
        odd = rows.labels[(rows.labels != 0) & (rows.labels != 1)]
        if len(odd):
            raise ValueError(
                f"FUDGE learns an attribute, 0 or 1, but there is the reward {odd[0]:g}; set a "
                "threshold, above which an answer has the attribute."
            )
        return rows

    def attributed(self, items: Sequence[Any]) -> Sequence[Any]:
        """The items with the attribute as their label, 0 or 1, if there is a threshold."""
        if self.threshold is None:
            return items
        return [item._replace(label=float(item.label > self.threshold)) for item in items]

    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of every prefix to the attribute, in nats; see Objective.loss."""
        logits = rows.gather(outputs[..., 0])  # [rows, steps]
        labels = rows.labels[:, None].expand_as(logits).to(logits)
        mask = rows.mask()
        return binary_cross_entropy_with_logits(logits[mask], labels[mask])

    def info(self) -> dict[str, Any]:
        """The head's output is a logit; its log σ is the score."""
        return super().info() | {"link": "log_sigmoid"}
