"""`trimtab fleet`: change all servers of a fleet together."""

from typing import Annotated

import typer

from trimtab.errors import TrimtabError

fleet = typer.Typer(help="Change all servers of a fleet together.", no_args_is_help=True)


@fleet.callback()
def commands() -> None:
    """Keep `load` a command of its own."""


@fleet.command()
def load(
    name: Annotated[str, typer.Argument(help="Name of the scorer.")],
    path: Annotated[str, typer.Argument(help="Its directory, below every server's scorer_dir.")],
    server: Annotated[list[str], typer.Option(help="Address of a server; repeat for each.")],
    family: Annotated[str | None, typer.Option(help="Family; default: the stored one.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Reference of a log-ratio, below scorer_dir.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Factor of a log-ratio.")] = None,
    admin_key: Annotated[
        str | None,
        typer.Option(help="Admin key of all servers.", metavar="KEY", envvar="TRIMTAB_ADMIN_KEY"),
    ] = None,
) -> None:
    """Load a scorer on all servers, or on none."""
    from trimtab_server import fleet as servers

    options = {"family": family, "reference": reference, "alpha": alpha}
    fields = {"name": name, "path": path, **{k: v for k, v in options.items() if v is not None}}
    try:
        for reply in servers.load(server, fields, admin_key):
            typer.echo(f"{reply.url}: serves {name}, version {reply.body['version']}")
    except TrimtabError as error:
        typer.echo(f"trimtab: {error.message}", err=True)
        raise typer.Exit(1) from None
