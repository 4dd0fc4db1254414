"""A probe's projection of tokens, trained on whitened embeddings.

    P = P'·W,   W = (Σ_v e_v·e_vᵀ / tokens)^(−1/2)

The variance of an output embedding lies mostly in a few directions, while tokens that can replace
each other, such as "good" and "bad", differ in others. A gradient step along a direction changes a
probe's output in proportion to its variance, so these differences would be learnt last, and decay
first. P' reads W·e_v, whose mean square is 1 in every direction; a new probe's P' is random. A
checkpoint has the product P, so whitening exists in training alone. Source: LeCun et al.,
"Efficient BackProp" (1998), section 4.3.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

FLOOR = 1e-4
"""Least mean square of a direction that W scales to 1, as a share of the mean of all directions."""


class Whitened(nn.Module):
    """The map from P' to P, and back."""

    whitening: Tensor
    inverse: Tensor

    def __init__(self, embedding: Tensor) -> None:
        """embedding: [vocab, hidden]."""
        super().__init__()
        squares, directions = torch.linalg.eigh(embedding.T @ embedding / len(embedding))
        roots = squares.clamp(min=FLOOR * float(squares.mean())).sqrt()
        self.register_buffer("whitening", directions / roots @ directions.T, persistent=False)
        self.register_buffer("inverse", directions * roots @ directions.T, persistent=False)

    def forward(self, projection: Tensor) -> Tensor:
        """P of P': [rank, hidden]."""
        return projection @ self.whitening

    def right_inverse(self, projection: Tensor) -> Tensor:
        """P' of P: [rank, hidden]."""
        return projection @ self.inverse


def whiten(tokens: nn.Linear, embedding: Tensor) -> None:
    """Train P' in place of the weight P from now on, until `restore`.

    tokens: the projection of a probe. embedding: the base's, [vocab, hidden].
    """
    parametrize.register_parametrization(tokens, "weight", Whitened(embedding))


def restore(tokens: nn.Linear) -> None:
    """Make P, as trained, the weight again."""
    parametrize.remove_parametrizations(tokens, "weight", leave_parametrized=True)
