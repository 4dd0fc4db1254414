"""Settings of a run of preference-grounded training."""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Algorithm = Literal["grounded-reinforce", "grounded-mle"]
NAMES: tuple[str, ...] = get_args(Algorithm)


class GroundedConfig(BaseModel):
    """A run. Paths are relative to the working directory of the command."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objective: Algorithm
    options: dict[str, Any] = Field({}, description="plackett-luce's: aggregation, scale, ...")
    base: str = Field(description="the language model to train; or demo, smollm2")
    scorer: str | None = Field(None, description="initial token-reward network; base if absent")
    layers: int | None = Field(None, gt=0, description="number of its lowest layers to keep")
    data: str = Field(description="records with a prompt and, for grounded-mle, a completion")
    reward: str = Field(description="ranks generations: module:function, classifier: or judge:")
    out: Path = Field(description="directory of the trained language model")
    steps: int = Field(1000, gt=0, description="updates of the language model")
    period: int = Field(100, gt=0, description="updates between two estimations of the rewards")
    batch_size: int = Field(32, gt=0)
    learning_rate: float = Field(5e-5, gt=0)
    alpha: float = Field(1 / 8, ge=0, description="weight of the entropy, for grounded-reinforce")
    k: int = Field(5, ge=2, description="ranked generations of each prompt")
    rankings: int = Field(128, gt=0, description="prompts ranked at each estimation")
    reward_epochs: float = Field(2, gt=0, description="epochs over the rankings of an estimation")
    reward_batch_size: int = Field(8, gt=0, description="rankings in a step")
    reward_learning_rate: float = Field(1e-4, gt=0)
    max_new_tokens: int = Field(128, gt=0)
    seed: int = 0

    @field_validator("alpha")
    @classmethod
    def _read(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("objective") == "grounded-mle":
            raise ValueError("is of grounded-reinforce, whose loss has an entropy; leave it out")
        return value

    def estimates(self, step: int) -> bool:
        """Whether the token rewards are estimated before this step: at the start of each period
        in the first half of the training."""
        return step % self.period == 0 and (step == 0 or step < self.steps / 2)
