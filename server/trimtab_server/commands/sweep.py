"""`trimtab sweep`: which β and k to use, with one's own base, scorers, prompts and reward."""

import importlib
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
    from trimtab.quiet import quieten

    quieten()
    # Imported here, for torch and transformers take seconds.
    sweeps = importlib.import_module("trimtab.arena.sweep")
    tasks = importlib.import_module("trimtab.arena.task")
    scales = importlib.import_module("trimtab.arena.scale")
    parse = importlib.import_module("trimtab.config").parse_scorer
    outputs = importlib.import_module("trimtab_models.outputs")
    demo = importlib.import_module("trimtab_server.demo")
    with resumable():
        outputs.check(outputs.place(out), sweeps.MADE_BY)
        flags = context.args
        if model == demo.NAME:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
            model, flags = str(demo.demo.base()), [*demo.ENGINE, *flags]
        scorers = dict(parse(text) for text in scorer)
        fields = {"gold": sweeps.REWARD, "supports": {}, "bins": {}}
        world = tasks.own_world(
            "sweep", model, {"test": prompts}, {sweeps.REWARD: reward}, max_tokens, **fields
        )
        engine = importlib.import_module("trimtab.offline").engine_options(flags)
        task = tasks.Task("sweep", world, engine=engine)
        scale = scales.Scale(0, 0, 0, sys.maxsize, 0, n, (), sweeps.LADDER, seed=seed)
        command = shlex.join(["trimtab", *sys.argv[1:]])
        advice = sweeps.sweep(task, model, scorers, out, scale, kl, command)
    typer.echo(str(advice))
    typer.echo(f"See {out / 'sweep.md'}.")
