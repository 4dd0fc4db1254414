"""Build the base and the rollouts of one world.

python -m trimtab_models.worlds NAME --out DIR
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

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
    base = build.build_base(world, given.out)
    given.out.mkdir(parents=True, exist_ok=True)
    out = given.out / "rollouts.jsonl"
    more, each = world.practice
    build.roll_out(world, base, out, prompts=PROMPTS * more, completions=int(COMPLETIONS * each))


if __name__ == "__main__":
    main()
