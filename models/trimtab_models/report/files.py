"""A report on disk: beside the weights of a new checkpoint, or added to an old one."""

import json
import shutil
from pathlib import Path

from trimtab_models import card, checkpoint, manifest, outputs, peft
from trimtab_models.info import ScorerInfo
from trimtab_models.report import plots, text
from trimtab_models.report.validate import Report


def write(directory: str | Path, report: Report) -> None:
    """Write report.md, report.json and the plots into a directory, each below 100 KB."""
    top = Path(directory)
    (top / "report.md").write_text(text.markdown(report), encoding="utf-8")
    (top / "report.json").write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    plots.draw(top, report)


def check(directory: str | Path) -> list[str]:
    """Make sure that a report can be added to a checkpoint without changing foreign files.

    Returns:
        Files that the checkpoint's manifest does not name; empty without a manifest.

    Raises:
        InTheWay: one of them has the name of a report's file, or nothing can be written.
        BrokenCheckpoint: the manifest is damaged.
        OSError: there is no such directory.
    """
    top = Path(directory).resolve()
    if not top.is_dir():
        raise OSError(f"there is no directory {directory} to write the report into.")
    others = manifest.foreign(top)
    if taken := sorted({"report.md", "report.json", *plots.PLOTS}.intersection(others)):
        raise outputs.InTheWay(f"{top / taken[0]} is not of an earlier report; move it away.")
    outputs.check_free(top)
    return others if (top / manifest.NAME).exists() else []


def mark(info: ScorerInfo, report: Report) -> ScorerInfo:
    """A checkpoint's ScorerInfo with the prefix-AUC of its report, and what it knows at the end."""
    end = max(report.known[-1].reward.value, 0.0)
    figures = {"prefix_auc": report.prefix_auc.mean.mean, "known_at_end": end**2}
    return info.model_copy(update={key: round(value, 4) for key, value in figures.items()})


def update(directory: str | Path, report: Report) -> None:
    """Add a report to an existing checkpoint: its files, its card and its prefix-AUC.

    A copy of the checkpoint is changed, gets a new manifest, and replaces the old one, so that a
    kill leaves the old one or the new one.

    Raises:
        OSError: no such directory, or no config.json in it.
        as `check`.
    """
    target = Path(directory).resolve()
    others = check(target)
    info = mark(checkpoint.read_info(target), report)
    with manifest.placing(target, others) as work:
        shutil.copytree(target, work, dirs_exist_ok=True)
        write(work, report)
        _store(work, info)
        own, metadata = card.read(work)
        (work / card.NAME).write_text(card.card(info, own, work, metadata), encoding="utf-8")


def _store(directory: Path, info: ScorerInfo) -> None:
    """Write a ScorerInfo into a checkpoint, where checkpoint.read_info reads it."""
    if peft.is_adapter(directory):
        content = info.model_dump()
        file = directory / peft.INFO
    else:
        file = directory / "config.json"
        content = json.loads(file.read_text(encoding="utf-8")) | {"trimtab": info.model_dump()}
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
