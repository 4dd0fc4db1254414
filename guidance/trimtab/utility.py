"""What a request makes of a scorer's return R: the utility u(R), of which it wants a high mean.

    "mean"           u(R) = R                     today's default
    {"target": x}    u(R) = −|R − x|              closeness, in the unit of the return
    {"at_least": x}  u(R) = 1 if R ≥ x, else 0    its mean is the probability of R ≥ x
    {"at_most": x}   u(R) = 1 if R ≤ x, else 0
    {"cvar": a}      u(R) = η − (η − R)⁺/a        its highest mean over η is CVaR_a

CVaR_a is the mean of the worst share a of the answers. It is no mean of a fixed u, but the highest
over η (Rockafellar and Uryasev, 2000); see trimtab.cvar for η.

With a histogram of returns, log E exp(c·u(R)) is a sum over its bins, so one scorer serves every u.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from torch import Tensor

Kind: TypeAlias = Literal["target", "at_least", "at_most", "cvar"]
Utility: TypeAlias = Literal["mean"] | dict[Kind, float]
KINDS: tuple[Kind, ...] = get_args(Kind)
LARGEST = 1e6
"""Maximum size of a number in a utility."""
CLOSE = 1e-3
"""Share of a bin's width within which a return reaches a threshold: bins are rounded numbers."""
EXPECTED = (
    'a utility is "mean", or an object with one of '
    f'{", ".join(KINDS)} and a number, such as {{"target": 40}}'
)


def checked(utility: Any) -> Utility:
    """A utility as a request sent it.

    Raises:
        ValueError: says what was expected.
    """
    if utility == "mean":
        return "mean"
    if not isinstance(utility, Mapping) or len(utility) != 1:
        raise ValueError(EXPECTED)
    [(name, number)] = utility.items()
    kind = next((one for one in KINDS if one == name), None)
    if kind is None or not isinstance(number, int | float) or isinstance(number, bool):
        raise ValueError(EXPECTED)
    if not abs(number) <= LARGEST:  # nor NaN
        raise ValueError(f"a number in a utility must be at most {LARGEST:g} in size")
    if kind == "cvar" and not 0 < number <= 1:
        raise ValueError("the share of cvar must be above 0 and at most 1")
    return {kind: float(number)}


def kind_of(utility: Utility) -> tuple[Literal["mean"] | Kind, float]:
    """The kind and its number; 0 for "mean"."""
    if isinstance(utility, str):
        return utility, 0.0
    [(kind, number)] = utility.items()
    return kind, number


def levels(utility: Utility, returns: "Tensor", eta: float = 0.0) -> "Tensor":
    """u(R) of each bin, [bins] → [bins]; eta: η of cvar.

    Thresholds are met at the resolution of the bins.
    """
    kind, x = kind_of(utility)
    near = CLOSE * (returns[1] - returns[0])
    match kind:
        case "target":
            return -(returns - x).abs()
        case "at_least":
            return (returns >= x - near).to(returns.dtype)
        case "at_most":
            return (returns <= x + near).to(returns.dtype)
        case "cvar":
            return eta - (eta - returns).clamp(min=0) / x
    return returns


def spell(utility: Utility) -> str:
    """The flat form: `mean`, `target:40.0`."""
    kind, number = kind_of(utility)
    return kind if kind == "mean" else f"{kind}:{number!r}"


def read(text: str) -> Utility:
    """The inverse of `spell`.

    Raises:
        ValueError: the number is none.
    """
    kind, _, number = text.strip().partition(":")
    known = next((one for one in KINDS if one == kind), None)
    if known is None:
        if text.strip() != "mean":
            raise ValueError(EXPECTED)
        return "mean"
    return {known: float(number)}
