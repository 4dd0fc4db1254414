"""The steps of an answer, for process reward models, which score an answer at the end of each step.

    s(prefix + v) = aggregate of the scores of the answer up to step 1, up to step 2, …

over the steps that a delimiter has ended. Between delimiters the score stays that of the last one,
so only a candidate that completes a delimiter differs from the others of its step. An answer that
has ended has ended its last step too.

    last     the score of the last step
    min      the lowest score of a step
    product  the sum of the scores: of log-probabilities, the logarithm of their product

Before the first step ends, the score is 0. Minimum and product are those of Lightman et al., "Let's
Verify Step by Step" (arXiv 2305.20050).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Aggregate = Literal["last", "min", "product"]


@dataclass(frozen=True)
class Steps:
    """How an answer is split into steps, and how their scores become one.

    delimiter: the text that ends a step. step_token: what the network reads in its place, if not
    the delimiter itself.
    """

    delimiter: str
    aggregate: Aggregate = "last"
    step_token: str | None = None

    def texts(self, answer: str, *, ended: bool) -> list[str]:
        """The answer up to the end of each step; steps of white space alone are none.

        ended: whether the answer is over, so that what follows the last delimiter is a step.
        """
        mark = self.delimiter if self.step_token is None else self.step_token
        *steps, rest = answer.split(self.delimiter)
        if ended:
            steps.append(rest)
        texts, so_far = [], ""
        for step in steps:
            so_far += step + mark
            if step.strip():
                texts.append(so_far)
        return texts

    def value(self, scores: Sequence[float]) -> float:
        """The score of an answer from those of its steps, in their order."""
        if not scores:
            return 0.0
        match self.aggregate:
            case "last":
                return scores[-1]
            case "min":
                return min(scores)
        return sum(scores)
