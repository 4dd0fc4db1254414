"""`trimtab serve demo`: the embedded base model and its scorers, tuned for a small CPU."""

from trimtab.config import ScorerSpec
from trimtab_models import demo
from trimtab_server.settings import Settings

NAME = "demo"
ENGINE = [
    *("--dtype", "float32"),
    *("--max-model-len", "512"),
    *("--max-num-seqs", "64"),
    "--enforce-eager",
]
"""vLLM's engine flags for the demo, served or offline."""

FLAGS = [
    *ENGINE,
    *("--served-model-name", NAME),
    "--enable-auto-tool-choice",
    *("--tool-call-parser", "hermes"),
]


def fill(settings: Settings) -> tuple[Settings, list[str]]:
    """Settings with the demo's model and scorers added, and the demo's vLLM flags."""
    scorers = {name: ScorerSpec(path=str(path)) for name, path in demo.scorers().items()}
    filled = settings.model_copy(
        update={"model": str(demo.base()), "scorer": {**scorers, **settings.scorer}}
    )
    return filled, FLAGS
