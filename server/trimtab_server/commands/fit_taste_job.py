"""The work of `trimtab fit-taste`: files → scores of answers → the fit and its preset."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from pydantic import BaseModel, ValidationError

from trimtab import reasons
from trimtab.config import parse_scorer
from trimtab.errors import StartError
from trimtab.local import Guidance
from trimtab.params import MAX_SCORERS, GuidanceParams
from trimtab.taste import LEVEL, Candidate, Comparison, Pair, Question, learn, pairs_of
from trimtab.taste.comparisons import MAX_CANDIDATES, MAX_COMPARISONS, fields_of, to_score
from trimtab_models import checkpoint, networks, outputs, pretrained
from trimtab_models.data.lines import json_lines
from trimtab_server import bases
from trimtab_server.presets import file as presets_file
from trimtab_server.presets.preset import Preset, check_name

LENGTH = 8192
"""Maximum tokens of a prompt and an answer, if the base's configuration has no limit."""
Line = TypeVar("Line", bound=BaseModel)


def run(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fit, and save the preset if a file is named: the fields of the fit.

    Raises:
        TrimtabError, ValueError, OSError: with a message for the user.
    """
    strength = {n: options[n] for n in ("beta", "kl_budget") if options[n] is not None}
    if len(strength) != 1:
        raise StartError("give exactly one of --beta and --kl-budget.")
    GuidanceParams.parse(strength)
    check_name(options["preset"])
    _check_place(options)
    comparisons = _rows(options["comparisons"], Comparison, MAX_COMPARISONS)
    if not comparisons:
        raise StartError(f"{options['comparisons']} has no comparison; expected at least one.")
    candidates = []
    if options["candidates"] is not None:
        candidates = _rows(options["candidates"], Candidate, MAX_CANDIDATES)
    guidance = _guidance(options["base"], options["scorer"] or ())
    deviations = {n: one.info.deviation for n, one in guidance.guide.registry.scorers.items()}
    scores = _scores(guidance, pairs_of(comparisons, candidates))
    level = options["level"] or LEVEL
    fitted = learn(comparisons, candidates, scores, deviations, strength, level=level)
    _save(options, fitted.guidance)
    return fitted.fields


def text(fields: Mapping[str, Any], preset: str) -> str:
    """The fit for a reader: weights, pairs to compare next, and the preset."""
    wide = max(map(len, fields["weights"]))
    lines = [f"{'scorer':<{wide}}    weight   {fields['level']:.0%} interval      P(w > 0)"]
    for name, one in fields["weights"].items():
        low, high = one["interval"]
        lines.append(
            f"{name:<{wide}}  {one['mean']:+8.3g}   {low:+8.3g} … {high:<+8.3g}   "
            f"{one['positive']:.3f}"
        )
    if fields["undecided"]:
        lines += ["", f"not decided yet: {', '.join(fields['undecided'])}"]
    if fields["ask"]:
        lines += ["", "compare next, the most telling pair first:"]
    for number, one in enumerate(fields["ask"], 1):
        prompt = one.get("prompt") or one["messages"][-1]["content"]
        lines.append(f"{number}. {prompt}  ({one['gain']:.3f} nats)")
        lines += [
            f"   {letter}: {answer}" for letter, answer in zip("AB", one["answers"], strict=True)
        ]
    stored = {preset: {"guidance": fields["guidance"]}}
    return "\n".join([*lines, "", yaml.safe_dump(stored, sort_keys=False).rstrip()])


def _check_place(options: Mapping[str, Any]) -> None:
    """Refuse a file that cannot be written, or that has this preset, before any work."""
    if options["presets"] is None:
        return
    known = presets_file.read(outputs.file(options["presets"]), required=False)
    if options["preset"] in known and not options["replace"]:
        raise StartError(
            f"there is a preset '{options['preset']}' in {options['presets']} already; choose "
            "another name with --preset, or add --replace."
        )


def _save(options: Mapping[str, Any], guidance: Mapping[str, Any]) -> None:
    if options["presets"] is None:
        return
    where = outputs.file(options["presets"])
    known = presets_file.read(where, required=False)
    made = Preset.parse({"guidance": dict(guidance)})
    presets_file.write(where, {**known, options["preset"]: made})


def _rows(path: Path, model: type[Line], most: int) -> list[Line]:
    """The rows of a file of JSON Lines; fields that they do not have are left out."""
    rows = []
    for place, record, fault in json_lines(path):
        if fault:
            raise StartError(f"{place}: {fault}.")
        try:
            rows.append(model.model_validate(fields_of(model, record)))
        except ValidationError as error:
            raise StartError(
                f"{place}: {reasons.fields(error, list(model.model_fields))}."
            ) from None
    if len(rows) > most:
        raise StartError(f"{path} has {len(rows)} lines; expected at most {most}.")
    return rows


def _guidance(base: str, named: Sequence[str]) -> Guidance:
    """The scorers in this process, with the base itself if one of them reads its states."""
    path, _ = bases.locate(base, ())
    specs = dict(parse_scorer(one) for one in named) or _own(base)
    if not 1 <= len(specs) <= MAX_SCORERS:
        raise StartError(
            f"expected 1 to {MAX_SCORERS} scorers, got {len(specs)}: --scorer NAME=PATH."
        )
    try:
        tokenizer = pretrained.tokenizer(path)
        length = networks.longest(pretrained.configuration(path)) or LENGTH
        reading = any(_reads_states(spec) for spec in specs.values())
        model = networks.build("language", path, dtype=torch.float32) if reading else None
    except (OSError, ValueError) as error:
        raise StartError(f"the base model {base} cannot be loaded: {error}") from None
    return Guidance(specs, tokenizer, model=model, max_length=length)


def _own(base: str) -> dict[str, dict[str, Any]]:
    """The scorers that a base with a name is served with."""
    specs = bases.scorers_of(base)
    return {name: spec.model_dump(exclude_none=True) for name, spec in specs.items()}


def _reads_states(spec: Mapping[str, Any]) -> bool:
    family = spec.get("family")
    return (checkpoint.read_info(spec["path"]).family if family is None else family) == "probe"


def _scores(
    guidance: Guidance, pairs: Sequence[Pair]
) -> dict[tuple[Question, str], dict[str, float]]:
    """Each scorer's score of each answer of the pairs."""
    scores: dict[tuple[Question, str], dict[str, float]] = {}
    for question, answers in to_score(pairs).items():
        prompt = question.messages() or question.prompt or ""
        scored = guidance.score_answers(prompt, answers)
        scores |= {(question, a): s for a, s in zip(answers, scored, strict=True)}
    return scores
