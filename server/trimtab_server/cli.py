"""The `trimtab` command. Fast to import: only `serve` loads the engine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.errors import StartError, TrimtabError
from trimtab_server import settings, usage
from trimtab_server.commands.arena import arena
from trimtab_server.commands.batch import batch
from trimtab_server.commands.chat import chat
from trimtab_server.commands.demo import demo
from trimtab_server.commands.doctor import doctor
from trimtab_server.commands.fit_taste import fit_taste
from trimtab_server.commands.fleet import fleet
from trimtab_server.commands.generate import generate
from trimtab_server.commands.inspect import inspect
from trimtab_server.commands.publish import publish
from trimtab_server.commands.rollout import rollout
from trimtab_server.commands.sweep import sweep
from trimtab_server.commands.train import train

app = typer.Typer(
    help="Steer a frozen language model at decode time with small scorers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=PASS_ON)
@settings.options
def serve(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    help_vllm: Annotated[
        bool, typer.Option("--help-vllm", help="Show vLLM's own flags, and exit.")
    ] = False,
    **options: Any,
) -> None:
    """Serve MODEL, or the model at --upstream, steered by scorers.

    Other flags go to vLLM: see --help-vllm.

    The command line overrides TRIMTAB_* variables, which override the YAML file.
    """
    model = options["model"]
    try:
        if help_vllm:
            typer.echo(_help_of_vllm())
            return
        if model is not None and model.startswith("-"):
            raise typer.BadParameter("give the model first: trimtab serve MODEL [flags]")
        loaded = settings.load(options, config)
        from trimtab_server import launcher

        launcher.serve(loaded, context.args)
    except TrimtabError as error:
        typer.echo(f"trimtab: {error.message}", err=True)
        raise typer.Exit(1) from None


app.command()(generate)
app.command()(chat)
app.command()(doctor)
app.command()(inspect)
app.command(context_settings=PASS_ON)(rollout)
app.command()(train)
app.command()(publish)
app.command("fit-taste")(fit_taste)
app.command()(batch)
app.command()(arena)
app.command(context_settings=PASS_ON)(sweep)
app.add_typer(demo, name="demo")
app.add_typer(fleet, name="fleet")


def _help_of_vllm() -> str:
    try:
        from trimtab_server.vllm import flags
    except ImportError:
        raise StartError(
            'vLLM is not installed; install it with pip install "trimtab[cpu]" or "trimtab[gpu]".'
        ) from None
    return flags.text()


@app.command()
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    typer.echo(f"trimtab {installed('trimtab')}")


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version, and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Steer a frozen language model at decode time with small scorers."""


def main() -> None:
    """Entry point of the `trimtab` command."""
    usage.run(app)


if __name__ == "__main__":
    main()
