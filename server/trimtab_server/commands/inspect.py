"""`trimtab inspect`: what a checkpoint is, and whether it fits a base."""

import json
from typing import Annotated

import typer

from trimtab.errors import TrimtabError


def inspect(
    checkpoint: Annotated[
        str, typer.Argument(help="Directory or hub name of a scorer, or PATH,key=value...")
    ],
    base: Annotated[
        str | None,
        typer.Option(
            help="A base to try it with: a directory, a hub name, demo or smollm2.", metavar="NAME"
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Describe CHECKPOINT: family, base, training, size, report and files.

    With --base, load it as `trimtab serve` would, and say how it fits. The exit status is 1 if it
    cannot be served.
    """
    # Imported here because torch takes seconds.
    from trimtab_server.commands import inspect_job

    try:
        facts = inspect_job.facts(checkpoint, base)
    except (TrimtabError, OSError, ValueError) as error:
        typer.echo(f"trimtab: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None
    if json_:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        wide = max(map(len, facts))
        for name, value in facts.items():
            typer.echo(f"{name:<{wide}}  {inspect_job.text(value)}")
    if facts.get("fits", True) is False or facts["problem"] is not None:
        raise typer.Exit(1)
