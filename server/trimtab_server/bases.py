"""Base models that are served by a name: their vLLM flags and their scorers, for a small CPU."""

from collections.abc import Sequence

from trimtab.config import ScorerSpec
from trimtab.errors import StartError
from trimtab_models import bases, demo, smollm2
from trimtab_server.settings import Settings

ENGINE: dict[str, list[str]] = {
    "demo": [
        *("--dtype", "float32"),
        *("--max-model-len", "512"),
        *("--max-num-seqs", "64"),
        "--enforce-eager",
    ],
    smollm2.NAME: [
        *("--dtype", "bfloat16"),
        *("--max-model-len", "2048"),
        *("--max-num-seqs", "16"),
        "--enforce-eager",
    ],
}
"""vLLM's engine flags for each base, served or offline."""
TOOLS = {"demo": ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]}
"""Flags of a base that calls tools. SmolLM2-135M-Instruct was not trained to."""

UNTRAINED = "smollm2 has no trained scorers yet; `trimtab demo train` makes them."


def locate(model: str, flags: Sequence[str]) -> tuple[str, list[str]]:
    """A base's directory, and its engine flags before the user's; another model is unchanged.

    Raises:
        StartError: the base cannot be fetched.
    """
    try:
        return bases.base_path(model), [*ENGINE.get(model, ()), *flags]
    except (OSError, ValueError) as error:
        raise StartError(str(error)) from None


def fill(settings: Settings) -> tuple[Settings, list[str]]:
    """Settings with the directory and the scorers of a base with a name, and its vLLM flags.

    Other settings are unchanged, without flags.

    Raises:
        StartError: the base cannot be fetched.
    """
    name = settings.model or ""
    if name not in ENGINE:
        return settings, []
    path, flags = locate(name, ())
    update = {"model": path, "scorer": {**scorers_of(name), **settings.scorer}}
    if name == smollm2.NAME and not settings.default_scorer:
        trained = smollm2.probes()
        if not trained:
            bases.say(UNTRAINED)
        # Requests that name none keep the scorers that they had before there were probes.
        named = [one for one in update["scorer"] if one not in trained or one in settings.scorer]
        update["default_scorer"] = dict.fromkeys(named, 1.0)
    filled = settings.model_copy(update=update)
    return filled, [*flags, "--served-model-name", name, *TOOLS.get(name, ())]


def scorers_of(name: str) -> dict[str, ScorerSpec]:
    """The scorers that a base with a name is served with; none for another base."""
    if name not in ENGINE:
        return {}
    if name == "demo":
        return {name: ScorerSpec(path=str(path)) for name, path in demo.scorers().items()}
    specs = smollm2.functions() | smollm2.probes()
    return {name: ScorerSpec.model_validate(fields) for name, fields in specs.items()}
