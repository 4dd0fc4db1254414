"""`trimtab publish`: a checkpoint becomes a repository, here or on the hub."""

from pathlib import Path
from typing import Annotated

import typer


def publish(
    checkpoint: Annotated[Path, typer.Argument(help="Directory of the scorer.")],
    to: Annotated[
        str,
        typer.Option(
            help="A new or empty directory (it begins with ., / or ~, or is there already), or "
            "else the hub name of a model, org/name.",
            metavar="DIR|ORG/NAME",
        ),
    ],
    private: Annotated[
        bool, typer.Option("--private", help="On the hub: not for everyone to see.")
    ] = False,
    base_model: Annotated[
        str | None,
        typer.Option(
            help="Hub name of the base, if the checkpoint knows a directory of it.",
            metavar="ORG/NAME",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Hub name of a log-ratio scorer's untuned model, likewise.", metavar="ORG/NAME"
        ),
    ] = None,
) -> None:
    """Write CHECKPOINT as a complete repository, with its card, to a directory or to the hub.

    The hub's address and token are those of the Hugging Face tools (`hf auth login`, HF_TOKEN).
    """
    # Imported this late because it imports torch.
    from trimtab_models import publish as publishing

    try:
        where = publishing.publish(
            checkpoint, to, private=private, base_model=base_model, reference=reference
        )
    except (OSError, ValueError) as error:
        typer.echo(f"trimtab: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"published: {where}")
