"""The `trimtab` command. Fast to import: only `serve` loads the engine."""

from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab.errors import TrimtabError
from trimtab_server import settings
from trimtab_server.commands.arena import arena
from trimtab_server.commands.batch import batch
from trimtab_server.commands.demo import demo
from trimtab_server.commands.fleet import fleet
from trimtab_server.commands.publish import publish
from trimtab_server.commands.rollout import rollout
from trimtab_server.commands.sweep import sweep
from trimtab_server.commands.train import train

app = typer.Typer(
    help="Steer a frozen language model at decode time with small scorers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
URL = "http://127.0.0.1:8000"
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

app.command(context_settings=PASS_ON)(rollout)
app.command()(train)
app.command()(publish)
app.command()(batch)
app.command()(arena)
app.command(context_settings=PASS_ON)(sweep)
app.add_typer(demo, name="demo")
app.add_typer(fleet, name="fleet")


@app.command(context_settings=PASS_ON)
@settings.options
def serve(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    **options: Any,
) -> None:
    """Serve MODEL, or the model at --upstream, steered by scorers.

    Other flags go to vLLM.

    The command line overrides TRIMTAB_* variables, which override the YAML file.
    """
    model = options["model"]
    try:
        if model is not None and model.startswith("-"):
            raise typer.BadParameter("give the model first: trimtab serve MODEL [flags]")
        loaded = settings.load(options, config)
        from trimtab_server import launcher

        launcher.serve(loaded, context.args)
    except TrimtabError as error:
        typer.echo(f"trimtab: {error.message}", err=True)
        raise typer.Exit(1) from None


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"trimtab {installed('trimtab')}")


@app.command()
def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="Message to the model.")],
    scorer: Annotated[
        list[str] | None,
        typer.Option(help="NAME=WEIGHT; repeat for each. Default: the server's."),
    ] = None,
    beta: Annotated[float | None, typer.Option(help="Strength; 0 is the base model.")] = None,
    kl_budget: Annotated[
        float | None, typer.Option(help="KL budget in nats, instead of --beta.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="k, mass and tail of a paper: args, pargs or vas.")
    ] = None,
    k: Annotated[
        str | None, typer.Option(help="Maximum candidates per step, or all.", metavar="NUMBER|all")
    ] = None,
    mass: Annotated[float | None, typer.Option(help="Total probability of the candidates.")] = None,
    tail: Annotated[str | None, typer.Option(help="mean or truncate.")] = None,
    normalize: Annotated[bool, typer.Option(help="Use normalised scores.")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum tokens to generate.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="Sampling seed.")] = None,
    n: Annotated[int | None, typer.Option(help="Number of answers.")] = None,
    stream: Annotated[bool, typer.Option(help="Print tokens as they arrive.")] = False,
    raw: Annotated[bool, typer.Option(help="Continue PROMPT without the chat template.")] = False,
    url: Annotated[str, typer.Option(help="Address of the server.")] = URL,
    api_key: Annotated[
        str | None, typer.Option(help="API key.", metavar="KEY", envvar="TRIMTAB_API_KEY")
    ] = None,
) -> None:
    """Send PROMPT to a running server and print the guided answer."""
    from trimtab_server import client

    apart = ("prompt", "scorer", "stream", "raw", "url", "api_key")
    body = {
        name: value
        for name, value in context.params.items()
        if name not in apart and value is not None and value is not False
    }
    if k is not None and k.isascii() and k.isdigit():
        body["k"] = int(k)
    if raw:
        body["prompt"] = prompt
    else:
        body["messages"] = [{"role": "user", "content": prompt}]
    try:
        if scorer:
            body["scorers"] = settings.weights(scorer)
        for line in client.generate(url, body, api_key, stream=stream):
            typer.echo(line, nl=False)
    except (TrimtabError, ValueError) as error:
        typer.echo(f"\ntrimtab: {error}", err=True)
        raise typer.Exit(1) from None


def main() -> None:
    """Entry point of the `trimtab` command."""
    app()


if __name__ == "__main__":
    main()
