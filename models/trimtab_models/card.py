"""The model card of a scorer: its author's text, its properties, its validation."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from trimtab_models.info import ScorerInfo

NAME = "README.md"
REPORT = "report.md"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
"""A valid name of a model on the hub (a full match)."""

FACTS = "| | |\n|---|---|\n"
"""Separates the author's text from the generated part."""


def card(
    info: ScorerInfo,
    text: str,
    directory: Path,
    metadata: Mapping[str, Any] | None = None,
    name: str = "THIS_DIRECTORY",
) -> str:
    """The card of the checkpoint in `directory`.

    Args:
        info: the scorer's description.
        text: the author's text, Markdown.
        directory: contains the network, and report.md if it was validated.
        metadata: more fields of the hub's metadata block (license, datasets, language, ...).
        name: the path or hub name of the checkpoint.
    """
    # A base without an organisation may be a directory's name; hubs refuse or misread it.
    known = "/" in info.base_model and HUB_NAME.fullmatch(info.base_model)
    fields = {
        "tags": ["trimtab", "scorer"],
        **(metadata or {}),
        "library_name": _library(info, directory),
        **({"pipeline_tag": task} if (task := _task(info, directory)) else {}),
        **({"base_model": info.base_model} if known else {}),
    }
    block = ModelCardData(**fields).to_yaml()
    auc = "unknown" if info.prefix_auc is None else f"{info.prefix_auc:.3f}"
    facts = {
        "family": f"`{info.family}`",
        "objective": info.objective,
        "base model": info.base_model,
        **({"fingerprint of the base": _fingerprint(directory)} if info.family == "probe" else {}),
        "mean ± deviation of its scores": f"{info.mean:.4f} ± {info.deviation:.4f}",
        "prefix-AUC": auc,
    }
    table = FACTS + "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    parts = [f"---\n{block}\n---", text.strip(), table]
    if figures := _figures(directory):
        parts.append(f"## Validation\n\n{figures}\n\nMore of it in [{REPORT}]({REPORT}).")
    parts.append(f"Serve it: `trimtab serve BASE --scorer name={name}`.")
    return "\n\n".join(parts) + "\n"


def read(directory: Path) -> tuple[str, dict[str, Any]]:
    """The author's text and the metadata of a card; the card may be missing or not ours."""
    file = directory / NAME
    if not file.exists():
        return "A Trimtab scorer.", {}
    existing = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    metadata = existing.data.to_dict()
    return str(existing.text).partition(FACTS)[0].strip(), metadata


def _fingerprint(directory: Path) -> str:
    """The fingerprint of the base whose states a probe reads; it works with no other base."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return f"`{config['base']}`"


def _library(info: ScorerInfo, directory: Path) -> str:
    if info.family == "probe":
        return "trimtab"
    return "peft" if (directory / "adapter_config.json").exists() else "transformers"


def _task(info: ScorerInfo, directory: Path) -> str | None:
    if info.family == "probe":
        return None  # transformers has no pipeline for it
    if info.family in ("vocabulary", "log_ratio"):
        return "text-generation"
    files = [directory / name for name in ("config.json", "adapter_config.json")]
    text = "".join(file.read_text(encoding="utf-8") for file in files if file.exists())
    sequence = "ForSequenceClassification" in text or "SEQ_CLS" in text
    return "text-classification" if sequence else "token-classification"


def _figures(directory: Path) -> str:
    """The first table of the validation report; empty without a report."""
    file = directory / REPORT
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows: list[str] = []
    for line in lines:
        if line.startswith("|"):
            rows.append(line)
        elif rows:
            break
    return "\n".join(rows)
