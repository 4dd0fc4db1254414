"""A scorer's description in its checkpoint: how the network's output becomes a score."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trimtab_models.files import Unusable, listed

Family = Literal["head", "distribution", "vocabulary", "log_ratio", "probe", "text"]
Link = Literal["identity", "sigmoid", "log_sigmoid"]
Reads = Literal["text", "answer", "pair", "chat"]
"""What a scorer of texts was trained on: prompt and answer as one text, the answer alone, a pair of
the two, or a conversation in its own chat template."""

STEERS = 0.6
"""A scorer with a lower prefix-AUC should not guide; 0.5 is chance."""
FORESEES = 0.9
"""Share of the reward's variance that a distribution must know at the end to foresee what guidance
costs. Of a KL budget it leaves unspent the share that it never learns."""


class ScorerInfo(BaseModel):
    """A scorer's description, stored in config.json as "trimtab".

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
    to_go: bool = Field(
        False,
        description="scores are of the return from the last token on, with the reward that it "
        "brings, and without those before: they compare the next tokens of one prefix alone",
    )
    adds_up: bool = Field(
        False, description="scores belong to single tokens; a text's score is their sum"
    )
    link: Link = Field("identity", description="maps a head's output to a score")
    support: tuple[float, float] | None = Field(
        None, description="returns of a distribution head's first and last bin, evenly spaced"
    )
    ahead: bool = Field(
        False,
        description="a distribution head with a histogram for each next token, read before it",
    )
    heads: int = Field(
        1, ge=1, description="outputs of a scalar head, an ensemble; its score is their mean"
    )
    alpha: float = Field(1.0, description="factor of a log-ratio scorer, α·log π_r(v | prefix)")
    reference: str | None = Field(
        None,
        description="reference model of a log-ratio scorer: a hub name or a directory, which may "
        "be relative to the checkpoint's",
    )
    reads: Reads | None = Field(
        None, description="the form of text that it was trained on, of a scorer of texts"
    )
    prefix_auc: float | None = Field(
        None, description="share of pairs whose order on prefixes is the final one; see validation/"
    )
    known_at_end: float | None = Field(
        None,
        description="share of the reward's variance that its scores of whole answers explain, on "
        "validation",
    )


def parse(fields: Any, where: str) -> ScorerInfo:
    """The ScorerInfo in a file's fields.

    Raises:
        Unusable: fields are invalid; the message names them, but not their values.
    """
    try:
        return ScorerInfo.model_validate(fields)
    except ValidationError as error:
        names = sorted({".".join(map(str, one["loc"])) or "all of them" for one in error.errors()})
        raise Unusable(
            f"{where}: the scorer's description has invalid fields: {listed(names)}."
        ) from None
