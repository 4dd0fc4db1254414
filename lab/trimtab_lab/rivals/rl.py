"""On-policy RL of the language model itself: RLOO by TRL's trainer, with exact rewards.

Each step samples n completions of each prompt of a batch from the policy at temperature 1. With
R' = R − (1/β)·log(π/π0)(y | x) of a whole completion, and b the mean R' of the other n − 1,

    ∇L = − mean (R' − b)·∇log π(y | x),

an unbiased gradient of E[R] − (1/β)·KL(π ‖ π0), whose maximum is π0·exp(βR)/Z: the target of
guidance at this β. Source: Ahmadian et al., "Back to Basics: Revisiting REINFORCE-Style
Optimization for Learning from Human Feedback in LLMs", section 2.2 and the RLOO estimator of
section 3.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl.trainer.rloo_config import RLOOConfig

from trimtab_models.demo.oracles import TextReward
from trimtab_models.training.saves import SafeTrainer
from trimtab_models.training.trainer import marks, settings

with warnings.catch_warnings():
    # TRL imports vLLM if present, and warns if it does not know the version; it is not used here.
    warnings.simplefilter("ignore")
    from trl.trainer.rloo_trainer import RLOOTrainer


class SafeRLOOTrainer(SafeTrainer, RLOOTrainer):
    """TRL's trainer with resumable saves."""


def fit(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    reward: TextReward,
    work: str | Path,
    *,
    beta: float,
    max_tokens: int,
    fingerprint: Mapping[str, Any] | None = None,
    **fields: Any,
) -> SafeRLOOTrainer:
    """Tune a language model in place; resumes and raises as `trainer.fit`.

    Args:
        model: a language model loaded from a directory, because TRL loads π0 from there.
        tokenizer: of the model.
        prompts: as the model reads them.
        reward: (prompt, completion without special tokens) → R.
        work: the run directory.
        beta: β of the objective, above 0.
        max_tokens: maximum tokens of a completion.
        fingerprint: as `trainer.fit`.
        fields: of TRL's RLOOConfig (max_steps, num_generations, learning_rate, ...).
    """

    def rewards(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [reward(x, y) for x, y in zip(prompts, completions, strict=True)]

    options = settings(work, validate=False, early_stopping=None, **fields)
    trainer = SafeRLOOTrainer(
        model=model,
        reward_funcs=rewards,
        args=RLOOConfig(
            **{"bf16": False, "gradient_checkpointing": False, **options},
            beta=1 / beta,
            temperature=1.0,
            max_completion_length=max_tokens,
        ),
        train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
        processing_class=tokenizer,
    )
    trainer.scales_warmup = "warmup_steps" not in options
    trainer.fingerprint = (
        marks(options, prompts, ())
        | {"beta": beta, "max_tokens": max_tokens}
        | dict(fingerprint or {})
    )
    trainer.fit()
    return trainer
