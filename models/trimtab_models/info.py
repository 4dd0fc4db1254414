"""What a checkpoint says of itself beyond its network: how its output becomes a score."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trimtab_models.files import Unusable, listed

Family = Literal["head", "distribution", "vocabulary", "log_ratio"]
Link = Literal["identity", "sigmoid", "log_sigmoid"]

STEERS = 0.6
"""Below this prefix-AUC a scorer had better not guide; one half is chance."""


class ScorerInfo(BaseModel):
    """What a scorer is, beyond its network; stored in config.json as "trimtab".

    `mean` and `deviation` are those of its scores over rollouts of the base, so that
    (s − mean)/deviation has the same scale for every scorer (GuidanceParams.normalize).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: Family = "head"
    objective: str = Field("unknown", description="the loss it was trained with")
    base_model: str = Field("unknown", description="the base whose prefixes it scores")
    mean: float = 0.0
    deviation: float = Field(1.0, gt=0)
    is_value: bool = Field(False, description="its scores are mean rewards, in the reward's unit")
    adds_up: bool = Field(
        False, description="its scores are of single tokens, and a text is worth their sum"
    )
    link: Link = Field("identity", description="what makes a head's output a score")
    support: tuple[float, float] | None = Field(
        None, description="lowest and highest return of a distribution head, bins evenly between"
    )
    ahead: bool = Field(
        False,
        description="a distribution head with a histogram for each next token, read before it",
    )
    alpha: float = Field(1.0, description="factor of a log-ratio scorer, α·log π_r(v | prefix)")
    reference: str | None = Field(
        None,
        description="untuned model of a log-ratio scorer: a hub name or a directory, which may be "
        "relative to the checkpoint's",
    )
    prefix_auc: float | None = Field(
        None, description="how often the order on prefixes is the final order; see validation/"
    )


def parse(fields: Any, where: str) -> ScorerInfo:
    """What a file says of a scorer.

    Raises:
        Unusable: it does not fit; the message names the fields, and never their values.
    """
    try:
        return ScorerInfo.model_validate(fields)
    except ValidationError as error:
        names = sorted({".".join(map(str, one["loc"])) or "all of it" for one in error.errors()})
        raise Unusable(
            f"{where}: what it says of the scorer does not fit: {listed(names)}."
        ) from None
