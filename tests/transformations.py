"""What each transformation of training data does to each field, and where there are any.

`Case`s say what becomes of every field that goes into a transformation; `found` reads the sources
for functions that make or change rollouts, pairs, rankings and their records.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

KEPT, CUT, DROPPED, MADE = "kept", "cut", "dropped", "made"
"""The value stays; a piece of it stays; nothing of it stays; another one takes its place."""
Fields = Mapping[str, Any]


class Case(NamedTuple):
    """A transformation: a call with the fields of one thing, which gives those of another."""

    call: Callable[[Fields], Fields]
    decisions: Mapping[str, str]


def check(name: str, case: Case, before: Fields) -> None:
    """Raise an AssertionError unless every field has a decision, and the call keeps to it."""
    undecided = set(before) ^ set(case.decisions)
    assert not undecided, f"{name}: say what becomes of {sorted(undecided)}"
    after = case.call(before)
    for field, decision in case.decisions.items():
        old, new = before[field], after.get(field)
        assert _is(decision, old, new), f"{name}: {field} is not {decision}: {old!r} became {new!r}"
    strange = set(after) - set(case.decisions)
    assert not strange, f"{name}: where do {sorted(strange)} come from?"


def _is(decision: str, old: Any, new: Any) -> bool:
    match decision:
        case "kept":
            return bool(new == old)
        case "cut":
            piece, whole = list(new), list(old)
            return bool(piece) and piece in (whole[: len(piece)], whole[-len(piece) :])
        case "made":
            return new is not None and bool(new != old)
    return not new


TYPES = {"Rollout", "Pair", "Ranked", "Rows"}
KEYS = {
    *("completion", "completion_token_ids", "prompt_token_ids", "completions"),
    *("chosen", "rejected", "chosen_ids", "reward", "label", "strength", "log_ratios"),
}


def transforming(source: str) -> Iterator[str]:
    """Functions in which a rollout, a pair, a ranking, or a record of one, is made or changed."""
    yield from dict.fromkeys(_walk(ast.parse(source), ()))


def _walk(node: ast.AST, inside: tuple[str, ...]) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        name = inside
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            name = (*inside, child.name)
        match child:
            case ast.Call(func=ast.Name(id=called)) if called in {*TYPES, "of_prompt"}:
                yield ".".join(name)
            case ast.Call(func=ast.Attribute(attr="_replace")):
                yield ".".join(name)
            case ast.Dict(keys=keys) if {
                key.value for key in keys if isinstance(key, ast.Constant)
            } & KEYS:
                yield ".".join(name)
        yield from _walk(child, name)


def all_transforming(root: Path) -> Iterator[str]:
    """The same of three packages: "data.lengths:_with"."""
    for package in ("models/trimtab_models", "guidance/trimtab", "lab/trimtab_lab"):
        for path in sorted((root / package).rglob("*.py")):
            module = ".".join(path.relative_to(root / package).with_suffix("").parts)
            for name in transforming(path.read_text(encoding="utf-8")):
                yield f"{module}:{name}"
