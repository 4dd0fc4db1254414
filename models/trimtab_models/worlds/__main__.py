"""Build the base and the rollouts of one world.

python -m trimtab_models.worlds NAME --out DIR
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from trimtab_models import outputs
from trimtab_models.worlds import WORLDS, build

PROMPTS, COMPLETIONS = 1024, 16


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m trimtab_models.worlds", description="Build a world of the arena."
    )
    parser.add_argument("name", choices=WORLDS)
    parser.add_argument("--out", type=Path, required=True, help="the world's directory")
    given = parser.parse_args(arguments)
    world = WORLDS[given.name]
    try:
        folder = outputs.claim(given.out, {"world": world.name})
    except (OSError, ValueError) as error:
        parser.error(str(error))
    base = build.build_base(world, folder)
    out = folder / "rollouts.jsonl"
    more, each = world.practice
    build.roll_out(world, base, out, prompts=PROMPTS * more, completions=int(COMPLETIONS * each))


if __name__ == "__main__":
    main()
