"""Build the base and the rollouts of one world.

python -m trimtab_lab.worlds NAME --out DIR
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trimtab_lab.worlds import WORLDS, build
from trimtab_models import outputs

PROMPTS, COMPLETIONS = 1024, 16


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m trimtab_lab.worlds", description="Build a world of the arena."
    )
    parser.add_argument("name", choices=WORLDS)
    parser.add_argument("--out", type=Path, required=True, help="the world's directory")
    options = parser.parse_args(arguments)
    world = WORLDS[options.name]
    prompt_factor, completion_factor = world.rollout_factors
    try:
        folder = outputs.claim(options.out, {"world": world.name})
        base = build.build_base(world, folder)
        out = folder / "rollouts.jsonl"
        count = int(COMPLETIONS * completion_factor)
        build.roll_out(world, base, out, prompts=PROMPTS * prompt_factor, completions=count)
    except (OSError, ValueError) as error:
        sys.exit(f"trimtab: {error}")


if __name__ == "__main__":
    main()
