"""The amount of work of an arena: full or quick."""

from dataclasses import dataclass, replace

from trimtab_lab.arena.methods import (
    LADDER,
    METHODS,
    QUICK,
    QUICK_LADDER,
    REAL_FULL,
    REAL_QUICK,
)
from trimtab_lab.worlds import World


@dataclass(frozen=True)
class Scale:
    """Numbers of prompts, answers and settings."""

    rollout_prompts: int
    """Training prompts; for rollouts, times the world's `rollout_factors`."""
    completions: int
    """Training answers to each of them."""
    guided: int
    """Guided answers to each training prompt, see refine.py."""
    prompts: int
    """Test prompts, the same for every method."""
    base_samples: int
    """Answers of the base to each test prompt, for the frontier."""
    answers: int
    """Answers to each test prompt in each setting."""
    methods: tuple[str, ...]
    ladder: tuple[float, ...]
    heat_map: tuple[str, ...] = ()
    """Methods whose reward over k × β is measured."""
    references: int = 0
    """Answers of the base per prompt, the best of which is ranked by token (ranks.py); 0: none."""
    diverse: int = 0
    """Answers per prompt of which the diversity is measured after all settings; 0: it is not."""
    rival_steps: int | None = None
    """Steps of the training of a rival; None: those of trimtab_lab.rivals."""
    epochs: tuple[float, float] | None = None
    """Epochs on rollouts and on pairs; None: those of each training."""
    seed: int = 0


FULL = Scale(
    1024,
    16,
    24,
    64,
    800,
    6,
    tuple(METHODS),
    LADDER,
    heat_map=("pargs",),
    references=16,
    diverse=10,
)
QUICK_SCALE = Scale(384, 8, 4, 48, 96, 2, QUICK, QUICK_LADDER, epochs=(3, 0.5))
REAL_SCALE = Scale(400, 2, 0, 48, 24, 2, REAL_FULL, (2.0, 4.0, 8.0))
REAL_QUICK_SCALE = replace(REAL_SCALE, methods=REAL_QUICK)
"""The methods without training; `trimtab arena WORLD` continues its directory."""


def of(world: World, quick: bool) -> Scale:
    """The scale of a world, full or quick."""
    if world.real:
        return REAL_QUICK_SCALE if quick else REAL_SCALE
    return QUICK_SCALE if quick else FULL
