"""`trimtab publish`: write a checkpoint as a repository, to a directory or the hub."""

from pathlib import Path
from typing import Annotated

import typer


def publish(
    checkpoint: Annotated[Path, typer.Argument(help="Directory of the scorer.")],
    to: Annotated[
        str,
        typer.Option(
            help="A new or empty directory (starts with ., / or ~, or exists), or the hub name of "
            "a model, org/name.",
            metavar="DIR|ORG/NAME",
        ),
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Create a private repository on the hub.")
    ] = False,
    base_model: Annotated[
        str | None,
        typer.Option(
            help="Hub name of the base, if the checkpoint was trained from a directory.",
            metavar="ORG/NAME",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="The same for the reference model of a log_ratio scorer.", metavar="ORG/NAME"
        ),
    ] = None,
) -> None:
    """Write CHECKPOINT as a complete repository with a model card, to a directory or the hub.

    Address and token of the hub come from the Hugging Face tools (`hf auth login`, HF_TOKEN).
    """
    # Imported here because torch takes seconds.
    from trimtab_models import publish as publishing

    try:
        location = publishing.publish(
            checkpoint, to, private=private, base_model=base_model, reference=reference
        )
    except (OSError, ValueError) as error:
        typer.echo(f"trimtab: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"published: {location}")
