"""`trimtab fit-taste`: a preset from comparisons of answers."""

import json
from pathlib import Path
from typing import Annotated

import typer

from trimtab.errors import TrimtabError


def fit_taste(
    context: typer.Context,
    comparisons: Annotated[
        Path,
        typer.Option(
            help="JSON Lines, each with a prompt (or messages), and chosen and rejected, or two "
            'answers and a choice (0, 1 or "tie").'
        ),
    ],
    base: Annotated[str, typer.Option(help="Base: a directory, a hub name, demo or smollm2.")],
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=PATH[,key=value...]; repeatable.",
            metavar="NAME=PATH",
            show_default="the base's own",
        ),
    ] = None,
    candidates: Annotated[
        Path | None,
        typer.Option(
            help="JSON Lines, each with a prompt (or messages) and answers that may be compared "
            "next.",
            show_default="the answers at hand",
        ),
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="Strength of the preset; 1 is the fitted utility.")
    ] = None,
    kl_budget: Annotated[
        float | None, typer.Option(help="KL budget of an answer in nats, instead of --beta.")
    ] = None,
    level: Annotated[
        float | None,
        typer.Option(help="Probability of each interval.", min=0.5, max=0.99, show_default="0.9"),
    ] = None,
    preset: Annotated[str, typer.Option(help="Name of the preset.")] = "taste",
    presets: Annotated[
        Path | None,
        typer.Option(help="YAML file of presets to add it to, of a server that is not running."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="--presets: replace a preset of this name.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the fit as JSON.")] = False,
) -> None:
    """Fit signed weights of scorers to comparisons of answers, and make a preset of them.

    Prints each weight with its credible interval, the pairs to compare next, and the preset.
    """
    # Imported here because torch and transformers take seconds.
    from trimtab_server.commands import fit_taste_job

    try:
        fields = fit_taste_job.run(context.params)
    except (TrimtabError, OSError, ValueError) as error:
        typer.echo(f"trimtab: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None
    if json_:
        typer.echo(json.dumps(fields, indent=2, ensure_ascii=False))
    else:
        typer.echo(fit_taste_job.text(fields, preset))
