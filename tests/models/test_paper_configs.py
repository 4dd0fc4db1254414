"""The configurations have the figures of their papers."""

import re
from pathlib import Path
from typing import Any

import pytest

from trimtab_models.training import config

CONFIGS = Path(__file__).parents[2] / "configs"
SUMMARIES = {"lora.r": 60, "lora.alpha": 16, "batch": 32, "epochs": 6}
CHAT = {"lora.r": 32, "lora.alpha": 32, "batch": 32, "epochs": 1}
PARGS = {"epochs": 1, "max_length": 512}

FIGURES: dict[str, dict[str, Any]] = {
    # VAS, Table 1
    "vas-seahorse": {
        **SUMMARIES,
        "learning_rate": [1e-5, 1e-4, 5e-4],
        "options.decay": 0.95,
    },
    "vas-hh": {**CHAT, "learning_rate": [1e-4, 3e-4, 1e-3], "options.decay": 0.95},
    "vas-tools": {**CHAT, "learning_rate": 1e-3, "options.decay": 0.98},
    "vas-personal": {**CHAT, "epochs": 8, "learning_rate": 1e-4, "options.decay": 0.95},
    # VAS, appendices C.3 and C.4
    "dpo-vas": {
        "lora.r": 32,
        "lora.alpha": 32,
        "batch": 64,
        "learning_rate": [1e-4, 5e-5, 1e-5],
        "options.beta": 0.1,
    },
    "fudge": {**SUMMARIES, "epochs": 3, "learning_rate": [1e-3, 1e-4, 1e-5]},
    "cd-fudge": {**CHAT, "learning_rate": [1e-4, 3e-4, 1e-3]},
    "ilql": {**SUMMARIES, "learning_rate": [1e-5, 1e-4, 5e-4], "options.expectile": 0.7},
    # PARGS, Tables 6, 7 and 8, and appendix I
    "pargs-tldr": {
        **PARGS,
        "batch_size": 16,
        "trainer.gradient_accumulation_steps": 16,
        "learning_rate": 5e-6,
        "options.rows_per_pair": 2,
    },
    "pargs-hh": {
        **PARGS,
        "batch_size": 16,
        "trainer.gradient_accumulation_steps": 16,
        "learning_rate": 5e-6,
        "options.rows_per_pair": 1.5,
    },
    "pargs-ultrafeedback": {
        **PARGS,
        "batch_size": 2,
        "trainer.gradient_accumulation_steps": 8,
        "trainer.fp16": True,
        "learning_rate": 2e-6,
        "options.rows_per_pair": 1.5,
    },
    "dpo-tldr": {
        **PARGS,
        "lora.r": 16,
        "lora.alpha": 16,
        "batch_size": 2,
        "trainer.gradient_accumulation_steps": 16,
        "trainer.fp16": True,
        "learning_rate": 5e-5,
    },
    "dpo-hh": {
        **PARGS,
        "lora.r": 16,
        "lora.alpha": 16,
        "batch_size": 1,
        "trainer.gradient_accumulation_steps": 16,
        "trainer.warmup_steps": 150,
        "bf16": True,
        "learning_rate": 5e-5,
    },
    # PG, Tables 13 to 16
    "preference-grounded": {
        "batch_size": 64,
        "learning_rate": 5e-5,
        "trainer.max_grad_norm": 5.0,
        "early_stopping": 7,
    },
    "grounded-prompts": {
        "steps": 12000,
        "period": 1000,
        "batch_size": 32,
        "learning_rate": 5e-5,
        "max_grad_norm": 5.0,
        "weight_decay": 0.0,
        "stopping.count": 7,
        "stopping.decay": 0.8,
        "stopping.patience": 2,
        "alpha": 0.125,
        "k": 5,
        "reward_batch_size": 64,
        "reward_learning_rate": 5e-5,
        "max_new_tokens": 5,
    },
    "grounded-summaries": {
        "batch_size": 32,
        "learning_rate": 5e-5,
        "max_grad_norm": 5.0,
        "weight_decay": 0.0,
        "k": 3,
        "reward_epochs": 1,
        "reward_batch_size": 32,
        "reward_learning_rate": 5e-5,
    },
    # ARGS; RAD; FUDGE and the others have no table of such figures
    "args-hh": {"epochs": 1},
}
NAMES = ("base", "scorer", "data", "completions", "out", "reward")
"""Settings whose value is a name, which may have digits."""


def value_of(loaded: Any, path: str) -> Any:
    if path == "batch":
        return loaded.batch_size * loaded.trainer.get("gradient_accumulation_steps", 1)
    for name in path.split("."):
        loaded = loaded[name] if isinstance(loaded, dict) else getattr(loaded, name)
    return loaded


@pytest.mark.parametrize("name", FIGURES)
def test_a_configuration_has_its_papers_figures(name: str) -> None:
    loaded = config.load(CONFIGS / f"{name}.yaml")
    for path, expected in FIGURES[name].items():
        assert value_of(loaded, path) == expected, path


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_number_names_its_source(file: Path) -> None:
    """A table or section of the paper, or that it is ours."""
    if file.stem.startswith("demo"):
        return
    for line in file.read_text().splitlines():
        setting, _, comment = line.partition("  #")
        key, _, value = setting.partition(":")
        if line.startswith("#") or key in NAMES or not re.search(r"\d", value.replace("bf16", "")):
            continue
        assert comment.strip(), line
