"""The work of `trimtab inspect`: facts from a checkpoint's files, and a try with a base."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from trimtab.adapters.memory import CONTEXT
from trimtab.config import GuidanceConfig, ScorerSpec, parse_scorer
from trimtab.errors import ScorerLoadError
from trimtab.loading import load_scorers, precheck
from trimtab.scoring.cross import CrossBackbone
from trimtab_models import bases, checkpoint, manifest, peft, pretrained
from trimtab_models.files import Unusable, read_json
from trimtab_models.info import STEERS

NAME = "it"
MB = 1e6


def facts(source: str, base: str | None) -> dict[str, Any]:
    """What is known of a checkpoint, in the order to print; `fits` only with a base.

    Args:
        source: PATH, or PATH,key=value... as for --scorer.
        base: directory or name of a base to load it with.

    Raises:
        OSError, ValueError: there is no such checkpoint, or no such base.
        ScorerLoadError: the options of the path are invalid.
    """
    _, fields = parse_scorer(f"{NAME}={source}")
    spec = ScorerSpec.model_validate(fields)
    info = checkpoint.read_info(spec.path)
    adapter = peft.is_adapter(spec.path)
    parameters, size = _weights(Path(spec.path))
    damage = _damage(Path(spec.path))
    known: dict[str, Any] = {
        "checkpoint": spec.path,
        "family": spec.family or info.family,
        "objective": info.objective,
        "base": info.base_model,
        "network": _network(spec.path, adapter),
        "parameters": parameters,
        "megabytes": None if size is None else round(size / MB, 1),
        "mean and deviation of scores": [info.mean, info.deviation],
        "prefix-AUC": info.prefix_auc,
        "steers": None if info.prefix_auc is None else info.prefix_auc >= STEERS,
        "variance known at the end": info.known_at_end,
        "report": _report(Path(spec.path)),
        "manifest": (Path(spec.path) / manifest.NAME).is_file(),
        "problem": damage or _problem(spec),
    }
    if base is not None and known["problem"] is None:
        known["fits"], known["fit"] = fit(spec, base)
    return known


def fit(spec: ScorerSpec, base: str) -> tuple[bool, str]:
    """Whether a scorer can be served with a base, and how: it is loaded as a server loads it.

    Raises:
        OSError, ValueError: there is no such base.
    """
    path = bases.base_path(base)
    config = pretrained.configuration(path).get_text_config()
    length = getattr(config, "max_position_embeddings", None) or CONTEXT
    guidance = GuidanceConfig(scorers={NAME: spec})
    try:
        scorers = load_scorers(
            guidance,
            max_length=length,
            vocab_size=config.vocab_size,
            tokenizer=path,
            model=path,
        )
    except ScorerLoadError as error:
        return False, _own(error)
    scorer = scorers[NAME]
    if isinstance(getattr(scorer, "backbone", None), CrossBackbone) or scorer.reads == "text":
        return True, f"yes, through text: its tokenizer is not that of {base}"
    if scorer.reads == "states":
        return True, f"yes, on the states of {base}: it forwards no token"
    return True, f"yes, token by token: it shares the tokenizer of {base}"


def text(value: Any) -> str:
    """A fact as it is printed."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(text, value))
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _problem(spec: ScorerSpec) -> str | None:
    """Why no server would load it; None if none is seen without a base."""
    try:
        precheck(GuidanceConfig(scorers={NAME: spec}))
    except ScorerLoadError as error:
        return _own(error)
    return None


def _own(error: ScorerLoadError) -> str:
    """The message without the name that this command gave the scorer."""
    return error.message.removeprefix(f"scorer '{NAME}' cannot be loaded: ")


def _network(path: str, adapter: bool) -> str:
    if adapter:
        return f"adapter of {peft.base(path)}"
    config = pretrained.configuration(path)
    names = getattr(config, "architectures", None) or [config.model_type]
    return str(names[0])


def _weights(folder: Path) -> tuple[int | None, int | None]:
    """Parameters and bytes of the weights of a directory; None for those of a hub name.

    Raises:
        Unusable: a file of weights is damaged.
    """
    if not folder.is_dir():
        return None, None
    files = sorted(folder.glob("*.safetensors"))
    parameters = 0
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                    count = 1
                    for length in tensors.get_slice(name).get_shape():
                        count *= length
                    parameters += count
        except SafetensorError:
            raise Unusable(f"{file} is damaged: not safetensors.") from None
    return parameters, sum(file.stat().st_size for file in files)


def _report(folder: Path) -> str | None:
    """Where its report is, and on how many completions it rests."""
    file = folder / "report.json"
    if not file.is_file():
        return None
    completions = read_json(file).get("completions")
    return f"{folder / 'report.md'}, on {completions} completions"


def _damage(folder: Path) -> str | None:
    """How the files of a directory differ from its manifest; None if they do not."""
    if (folder / manifest.NAME).is_file():
        try:
            manifest.verify(folder)
        except manifest.BrokenCheckpoint as error:
            return str(error)
    return None
