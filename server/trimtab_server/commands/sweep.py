"""`trimtab sweep`: choose β and k for your own base, scorers, prompts and reward."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from trimtab_server.commands.resumable import resumable


def sweep(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Base: a directory, a hub name, demo or smollm2.")],
    scorer: Annotated[
        list[str],
        typer.Option(help="NAME=PATH[,key=value...]; repeat for each.", metavar="NAME=PATH"),
    ],
    prompts: Annotated[Path, typer.Option(help="A text file or JSON Lines, as for rollout.")],
    reward: Annotated[str, typer.Option(help="Reward that judges answers, as for rollout.")],
    kl: Annotated[
        float | None, typer.Option(help="Maximum KL, nats per answer; default: none.", min=0)
    ] = None,
    out: Annotated[Path, typer.Option(help="Output directory.")] = Path("sweep"),
    n: Annotated[int, typer.Option(help="Answers per prompt and setting.", min=1)] = 4,
    max_tokens: Annotated[int, typer.Option(help="Maximum tokens per answer.", min=1)] = 128,
    seed: Annotated[int, typer.Option(help="Seed; determines the seed of each answer.")] = 0,
) -> None:
    """Run k × β on MODEL and recommend a setting, checked on held-out prompts.

    Other flags go to vLLM's engine. After an interruption, run the same command again to resume.
    """
    from trimtab.logs import configure_logging

    configure_logging()
    # Imported here because torch and transformers take seconds.
    from trimtab.config import parse_scorer
    from trimtab_lab.arena import scale as scales
    from trimtab_lab.arena import sweep as sweeps
    from trimtab_lab.arena import task as tasks
    from trimtab_models import outputs
    from trimtab_server import bases

    with resumable():
        outputs.check(outputs.place(out), sweeps.MADE_BY)
        model, flags = bases.locate(model, context.args)
        scorers = dict(parse_scorer(text) for text in scorer)
        fields = {"gold": sweeps.REWARD, "supports": {}, "bins": {}}
        world = tasks.own_world(
            "sweep", model, {"test": prompts}, {sweeps.REWARD: reward}, max_tokens, **fields
        )
        from trimtab.adapters.vllm.offline import engine_options

        engine = engine_options(flags)
        task = tasks.Task("sweep", world, engine=engine)
        scale = scales.Scale(0, 0, 0, sys.maxsize, 0, n, (), sweeps.LADDER, seed=seed)
        command = shlex.join(["trimtab", *sys.argv[1:]])
        advice = sweeps.sweep(task, model, scorers, out, scale, kl, command)
    typer.echo(str(advice))
    typer.echo(f"See {out / 'sweep.md'}.")
