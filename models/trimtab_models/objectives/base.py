"""The interface of all objectives: items become rows; rows and outputs become a loss."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from trimtab_models.networks import Head
from trimtab_models.rows import Pair, Ranked, Rollout, Rows, pad

DataKind = Literal["rollouts", "pairs", "ranked"]


class Objective(ABC):
    """A loss of the scores that a network gives to every prefix of a batch.

    An objective has options but no state: its results depend only on its arguments (and on torch's
    generator, where its docstring says so).
    """

    name: str
    """The name stored with the checkpoint."""
    data: ClassVar[DataKind] = "rollouts"
    """The type of its items: `Rollout`, `Pair` or `Ranked`."""
    head: ClassVar[Head] = "scalar"
    """The head of the network it trains; see `networks.build`."""
    reads_base: ClassVar[bool] = False
    """Whether `loss` needs log π0 of every next token."""
    reads_strength: ClassVar[bool] = False
    """Whether it can learn from answers that were sampled with guidance."""
    to_go: ClassVar[bool] = False
    """Whether it learns the return to go where rewards arrive before the end; see `returns.py`. The
    others learn of the whole return."""
    is_value: ClassVar[bool] = False
    """Whether scores are mean rewards, in the reward's unit, rather than only an order."""

    @abstractmethod
    def loss(self, outputs: Tensor, rows: Rows, log_pi0: Tensor | None = None) -> Tensor:
        """A scalar to minimise, a mean over the batch.

        Args:
            outputs: [rows, length, width] the network's output at every position; width is 1, the
                number of bins, the vocabulary size, or the vocabulary size + 1 (for V).
            rows: the batch from `collate`.
            log_pi0: [rows, length, vocab] the frozen base's log-probabilities of the next token
                at every position, if `reads_base`.
        """

    def collate(self, items: Sequence[Any], pad_id: int) -> Rows:
        """A batch of items as padded rows; a pair is two rows, a ranking K, the best first.

        Raises:
            ValueError: this objective cannot use an item.
        """
        flat, groups = [], []
        odds: list[Sequence[tuple[int, float]]] = []
        for group, item in enumerate(items):
            sides = completions(item)
            flat += sides
            groups += [group] * len(sides)
            odds += _odds(item) if isinstance(item, Pair) else [()] * len(sides)
        if not self.reads_strength and any(side.strength for side in flat):
            raise ValueError(
                f"{self.name} learns from the base's answers, but some were sampled with guidance "
                "(their 'strength' is not 0); leave them out, or train a distribution."
            )
        return pad(flat, pad_id, groups, odds)

    def info(self) -> dict[str, Any]:
        """Further fields of the checkpoint's `ScorerInfo`."""
        return {"is_value": self.is_value}

    def combine(self, outputs: Tensor) -> Tensor:
        """Q from a `vocabulary+value` head: [..., vocab + 1] → [..., vocab], linear.

        The same function is applied to the trained head's weights, so that a plain vocabulary head
        is saved.
        """
        return outputs


def completions(item: Rollout | Pair | Ranked) -> list[Rollout]:
    """An item's completions, the best first; labels are 0 where only an order is known."""
    if isinstance(item, Rollout):
        return [item]
    if isinstance(item, Pair):
        rewards = item.rewards or (0.0, 0.0)
        sides = zip((item.chosen, item.rejected), rewards, strict=True)
        return [Rollout(item.prompt, side, reward) for side, reward in sides]
    return [Rollout(item.prompt, side, 0.0) for side in item.completions]


def _odds(pair: Pair) -> list[list[tuple[int, float]]]:
    """For each side, its tokens at each measured point, and the probability that it wins."""
    return [[(i, p) for i, _, p in pair.odds], [(j, 1 - p) for _, j, p in pair.odds]]
