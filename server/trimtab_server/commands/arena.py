"""`trimtab arena`: compare decoding methods with each other and with the exact optimum."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from trimtab_server.commands.resumable import resumable


def arena(
    world: Annotated[
        str,
        typer.Argument(
            help="everyday or instructions, with a real base; tiny, reviews, digest, tools or "
            "sums, with made-up ones; gym:NAME[@BASE], a generator of reasoning-gym; or a YAML "
            "file for your own model."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Output directory (arena/WORLD); a started one is resumed."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer prompts, methods and settings.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="Run this method; repeatable.", metavar="METHOD")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Run the settings on a Ray cluster, an engine in each actor: auto, HOST:PORT, "
            "ray://…, or local for one on this machine. All machines must see --out.",
            metavar="ADDRESS",
        ),
    ] = None,
    ray_actors: Annotated[
        int | None,
        typer.Option(help="--ray: engines; default: one per GPU, else per machine.", min=1),
    ] = None,
) -> None:
    """Compare decoding methods on WORLD; write results.json, leaderboard.md and plots.

    Creates the base, rollouts and scorers that are missing. After an interruption, run the same
    command again to resume.
    """
    from trimtab.errors import StartError
    from trimtab.logs import configure_logging

    configure_logging()
    # Imported here because torch and transformers take seconds.
    from trimtab_lab.arena import arena as arenas
    from trimtab_lab.arena import scale as scales
    from trimtab_lab.arena import task as tasks
    from trimtab_lab.arena import tiny
    from trimtab_models import outputs

    with resumable():
        if ray_actors is not None and ray is None:
            raise StartError("--ray-actors needs --ray ADDRESS.")
        cluster = None if ray is None else (ray, ray_actors)
        command = shlex.join(["trimtab", *sys.argv[1:]])
        if world == tiny.NAME:
            folder = out or Path("arena") / tiny.NAME
            tiny.compare(folder, command)
            typer.echo((folder / "leaderboard.md").read_text(encoding="utf-8"))
            return
        name = tasks.name(world)
        folder = out or Path("arena") / (name + ("-quick" if quick else ""))
        outputs.check(outputs.place(folder), {"world": name})
        task = tasks.load(world)
        arenas.compare(task, folder, scales.of(task.world, quick), only or (), command, cluster)
    typer.echo((folder / "leaderboard.md").read_text(encoding="utf-8"))
