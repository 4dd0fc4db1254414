"""Scorer checkpoints: a directory that transformers loads by itself.

model.safetensors   the network (see networks.py)
config.json         transformers' own, with one more key, "trimtab": a ScorerInfo
tokenizer*.json     the tokenizer of the base model that the scorer reads
README.md           the model card
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from trimtab_models.networks import scalar_head, vocabulary_head

Family = Literal["head", "distribution", "vocabulary", "log_ratio"]
Link = Literal["identity", "sigmoid", "log_sigmoid"]


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
    link: Link = Field("identity", description="what makes a head's output a score")
    support: tuple[float, float] | None = Field(
        None, description="lowest and highest return of a distribution head, bins evenly between"
    )
    alpha: float = Field(1.0, description="factor of a log-ratio scorer, α·log π_r(v | prefix)")
    reference: str | None = Field(None, description="untuned model of a log-ratio scorer")
    prefix_auc: float | None = Field(
        None, description="how often the order on prefixes is the final order; see validation.py"
    )


def card(info: ScorerInfo, text: str) -> str:
    """The model card of a scorer, with the metadata block that hubs read."""
    return (
        "---\nlibrary_name: transformers\ntags: [trimtab, scorer]\n"
        f"base_model: {info.base_model}\n---\n\n{text.strip()}\n\n"
        "| | |\n|---|---|\n"
        f"| family | `{info.family}` |\n| objective | {info.objective} |\n"
        f"| base model | {info.base_model} |\n"
        f"| mean ± deviation of its scores | {info.mean:.4f} ± {info.deviation:.4f} |\n\n"
        "Serve it: `trimtab serve BASE --scorer name=THIS_DIRECTORY`.\n"
    )


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    info: ScorerInfo,
    path: str | Path,
    *,
    text: str = "A Trimtab scorer.",
) -> Path:
    """Write a checkpoint; the directory appears whole, or not at all."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        model.config.trimtab = info.model_dump()
        model.save_pretrained(work)
        if tokenizer is not None:
            tokenizer.save_pretrained(work)
        (work / "README.md").write_text(card(info, text))
        work.chmod(0o755)
        for file in work.iterdir():
            file.chmod(0o644)
        if target.exists():
            shutil.rmtree(target)
        work.rename(target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return target


def read_info(source: str | Path) -> ScorerInfo:
    """The ScorerInfo of a checkpoint directory or hub name; the defaults if it holds none."""
    config = AutoConfig.from_pretrained(str(source))
    return ScorerInfo.model_validate(getattr(config, "trimtab", {}))


def load(
    source: str | Path,
    *,
    family: Family | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[PreTrainedModel, ScorerInfo]:
    """A scorer network and its ScorerInfo, from a directory or a hub name.

    Weights come from safetensors only, and no code of the checkpoint runs.

    Raises:
        OSError: no such checkpoint, or no safetensors in it.
        ValueError: weights are missing from it, or do not fit its configuration.
    """
    info = read_info(source)
    if family is not None:
        info = info.model_copy(update={"family": family})
    if info.family == "distribution":
        options["bins"] = AutoConfig.from_pretrained(str(source)).num_labels
    build = scalar_head if info.family in ("head", "distribution") else vocabulary_head
    model, report = build(
        source,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **options,
    )
    if report["missing_keys"] or report["mismatched_keys"]:
        raise ValueError(
            f"the checkpoint lacks the weights {sorted(map(str, report['missing_keys']))[:3]} of a "
            f"'{info.family}' scorer; expected a network saved by trimtab_models.checkpoint.save "
            "or by the matching transformers class."
        )
    return model, info
