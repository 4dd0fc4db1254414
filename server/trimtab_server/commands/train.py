"""`trimtab train`: train a scorer from data with one objective."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    objective: Annotated[
        str | None,
        typer.Argument(
            help="td-lambda, bradley-terry, dpo, ...; default: the one in the configuration."
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Override a setting of the file, such as lora.r=8.", metavar="KEY=VALUE"
        ),
    ] = None,
) -> None:
    """Train a scorer. After an interruption, run the same command again to resume.

    On several GPUs: accelerate launch -m trimtab_models.training OBJECTIVE --config FILE.
    """
    # torch and transformers take seconds to import; other commands must not wait for them.
    from trimtab_models.training.__main__ import command

    if status := command(objective, config, set_ or []):
        raise typer.Exit(status)
