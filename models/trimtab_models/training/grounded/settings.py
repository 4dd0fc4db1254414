"""Settings of a run of preference-grounded training.

The paper's figures are in its appendix B, tables 13 to 16: among them a clipping norm of 5, and
Adam, which is AdamW without weight decay.
"""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Algorithm = Literal["grounded-reinforce", "grounded-mle"]
NAMES: tuple[str, ...] = get_args(Algorithm)


class Stopping(BaseModel):
    """Held-out evaluations that lower the learning rate and end the training; the best is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    validation: float = Field(0.1, gt=0, lt=1, description="share of the prompts to hold out")
    count: int = Field(7, gt=0, description="evaluations without a better one before the end")
    decay: float = Field(0.8, gt=0, le=1, description="factor of the learning rate on a plateau")
    patience: int = Field(2, ge=0, description="evaluations without a better one before a decay")


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
    reestimate: float = Field(
        0.5, ge=0, le=1, description="share of the training in which rewards are estimated again"
    )
    batch_size: int = Field(32, gt=0)
    learning_rate: float = Field(5e-5, gt=0)
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to it, of both")
    weight_decay: float = Field(0.01, ge=0, description="of both networks")
    stopping: Stopping | None = Field(None, description="ends by the reward of held-out prompts")
    eval_steps: int | None = Field(None, gt=0, description="updates between two evaluations")
    alpha: float = Field(1 / 8, ge=0, description="weight of the entropy, for grounded-reinforce")
    k: int = Field(5, ge=2, description="ranked generations of each prompt")
    rankings: int = Field(128, gt=0, description="prompts ranked at each estimation")
    reward_epochs: float = Field(2, gt=0, description="epochs over the rankings of an estimation")
    reward_batch_size: int = Field(8, gt=0, description="rankings in a step")
    reward_learning_rate: float = Field(1e-4, gt=0)
    reward_stopping: Stopping | None = Field(
        None, description="ends an estimation by the loss of held-out rankings, after each epoch"
    )
    max_new_tokens: int = Field(128, gt=0)
    seed: int = 0

    @field_validator("alpha")
    @classmethod
    def _read(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("objective") == "grounded-mle":
            raise ValueError("is of grounded-reinforce, whose loss has an entropy; leave it out")
        return value

    @field_validator("eval_steps")
    @classmethod
    def _fits(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("stopping") is None:
            raise ValueError("it is the interval of `stopping`; set both or neither")
        if value is not None and info.data.get("period", value) % value:
            raise ValueError(f"period ({info.data['period']}) must be a multiple of it")
        return value

    def estimates(self, step: int) -> bool:
        """Whether the token rewards are estimated after `step` updates.

        Always at the start, and again after every `period` updates in the share `reestimate` of
        the training, its last update included: ½ is Algorithm 2, 1 its footnote ("throughout"), 0
        the paper's arm without re-training.
        """
        last = round(self.reestimate * self.steps, 6)  # a product of floats may lie just below
        return step == 0 or (step % self.period == 0 and step <= last)

    def evaluates(self, step: int) -> bool:
        """Whether the language model is evaluated after `step` updates."""
        return self.stopping is not None and step % (self.eval_steps or self.period) == 0
