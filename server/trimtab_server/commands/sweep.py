"""`trimtab sweep`: which β and k to use, with one's own base, scorers, prompts and reward."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from trimtab_server.commands.resumable import resumable


def sweep(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Base: a directory or hub name, or 'demo'.")],
    scorer: Annotated[
        list[str],
        typer.Option(help="NAME=PATH[,key=value...]; again for each.", metavar="NAME=PATH"),
    ],
    prompts: Annotated[Path, typer.Option(help="A text file or JSON Lines, as of rollout.")],
    reward: Annotated[str, typer.Option(help="What judges; a specification as of rollout.")],
    kl: Annotated[
        float | None, typer.Option(help="Most nats per answer; any, if absent.", min=0)
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory of the results.")] = Path("sweep"),
    n: Annotated[int, typer.Option(help="Answers to each prompt, in each setting.", min=1)] = 4,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 128,
    seed: Annotated[int, typer.Option(help="Each answer's own seed comes from it.")] = 0,
) -> None:
    """Run k × β on MODEL and recommend a setting by held-out prompts.

    Flags not listed here go to vLLM's engine. Stopped in any way, the same command goes on.
    """
    from trimtab.logs import quieten

    quieten()
    # Imported here, for torch and transformers take seconds.
    from trimtab.config import parse_scorer
    from trimtab_lab.arena import scale as scales
    from trimtab_lab.arena import sweep as sweeps
    from trimtab_lab.arena import task as tasks
    from trimtab_models import outputs
    from trimtab_models.demo import base
    from trimtab_server import demo

    with resumable():
        outputs.check(outputs.place(out), sweeps.MADE_BY)
        flags = context.args
        if model == demo.NAME:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
            model, flags = str(base()), [*demo.ENGINE, *flags]
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
