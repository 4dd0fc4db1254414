"""The `trimtab` command. Fast to import: only `serve` loads the engine."""

import os
from importlib.metadata import version as installed
from pathlib import Path
from typing import Annotated

import typer

from trimtab.errors import TrimtabError
from trimtab_server.commands.arena import arena
from trimtab_server.commands.batch import batch
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


@app.command(context_settings=PASS_ON)
def serve(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="Base model: a directory, a hub name, or 'demo'.", show_default=False),
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH[,key=value...]; repeat for each scorer.", metavar="NAME=PATH"),
    ] = None,
    default_scorer: Annotated[
        list[str] | None,
        typer.Option(help="Scorer for requests that name none; repeatable.", metavar="NAME=W"),
    ] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(help="Key for all routes except /health.", metavar="KEY")
    ] = None,
    admin_key: Annotated[
        str | None, typer.Option(help="Key for the operator routes.", metavar="KEY")
    ] = None,
    allowed_origins: Annotated[
        list[str] | None, typer.Option(help="Origin allowed by CORS; repeatable.", metavar="ORIGIN")
    ] = None,
    scorer_dir: Annotated[
        Path | None, typer.Option(help="Directory of scorers for hot loading.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (8000).")] = None,
    max_body_bytes: Annotated[int | None, typer.Option(help="Maximum request body, bytes.")] = None,
    max_in_flight: Annotated[int | None, typer.Option(help="Maximum answers in flight.")] = None,
    drain_timeout: Annotated[
        float | None, typer.Option(help="Seconds for requests in flight after SIGTERM (30).")
    ] = None,
    scorer_timeout: Annotated[
        float | None, typer.Option(help="Seconds for a scorer, per step (10).")
    ] = None,
    cache_bytes: Annotated[int | None, typer.Option(help="Bytes for prefix caches.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    upstream: Annotated[
        str | None, typer.Option(help="URL of an OpenAI-compatible endpoint, instead of MODEL.")
    ] = None,
    upstream_model: Annotated[str | None, typer.Option(help="Its model name.")] = None,
    upstream_key: Annotated[
        str | None, typer.Option(help="Its API key (or TRIMTAB_UPSTREAM_KEY).", metavar="KEY")
    ] = None,
    upstream_api: Annotated[str | None, typer.Option(help="completions or chat.")] = None,
    upstream_continue: Annotated[
        str | None,
        typer.Option(help="How chat continues an answer: continue_final_message, prefix or none."),
    ] = None,
    upstream_top: Annotated[int | None, typer.Option(help="Candidates per step (20).")] = None,
    upstream_block: Annotated[
        int | None, typer.Option(help="Tokens per call at temperature 0 (1).")
    ] = None,
    upstream_end: Annotated[
        list[str] | None, typer.Option(help="Text of the end-of-turn token.", metavar="TEXT")
    ] = None,
    upstream_concurrency: Annotated[int | None, typer.Option(help="Concurrent calls (16).")] = None,
    upstream_retries: Annotated[int | None, typer.Option(help="Retries (3).")] = None,
    upstream_timeout: Annotated[float | None, typer.Option(help="Seconds per call (30).")] = None,
    upstream_deadline: Annotated[
        float | None, typer.Option(help="Seconds per answer (600).")
    ] = None,
    upstream_length: Annotated[
        int | None, typer.Option(help="Maximum tokens of prompt and answer.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="The upstream's tokenizer: directory or hub name.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
) -> None:
    """Serve MODEL, or the model at --upstream, steered by scorers.

    Other flags go to vLLM.

    The command line overrides TRIMTAB_* variables, which override the YAML file.
    """
    from trimtab_server import settings

    options = {
        "model": model,
        "scorer": scorer,
        "default_scorer": default_scorer,
        "api_key": api_key,
        "admin_key": admin_key,
        "allowed_origins": allowed_origins,
        "scorer_dir": scorer_dir,
        "host": host,
        "port": port,
        "max_body_bytes": max_body_bytes,
        "max_in_flight": max_in_flight,
        "drain_timeout": drain_timeout,
        "scorer_timeout": scorer_timeout,
        "cache_bytes": cache_bytes,
        "log_level": log_level,
        "upstream": upstream,
        "upstream_model": upstream_model,
        "upstream_key": upstream_key,
        "upstream_api": upstream_api,
        "upstream_continue": upstream_continue,
        "upstream_top": upstream_top,
        "upstream_block": upstream_block,
        "upstream_end": upstream_end,
        "upstream_concurrency": upstream_concurrency,
        "upstream_retries": upstream_retries,
        "upstream_timeout": upstream_timeout,
        "upstream_deadline": upstream_deadline,
        "upstream_length": upstream_length,
        "tokenizer": tokenizer,
    }
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
    prompt: Annotated[str, typer.Argument(help="Message to the model.")],
    scorer: Annotated[
        list[str] | None,
        typer.Option(help="NAME=WEIGHT; repeat for each. Default: the server's."),
    ] = None,
    beta: Annotated[float | None, typer.Option(help="Strength; 0 is the base model.")] = None,
    kl_budget: Annotated[
        float | None, typer.Option(help="KL budget in nats, instead of --beta.")
    ] = None,
    k: Annotated[int | None, typer.Option(help="Maximum candidates per step.")] = None,
    mass: Annotated[float | None, typer.Option(help="Total probability of the candidates.")] = None,
    tail: Annotated[str | None, typer.Option(help="truncate or mean.")] = None,
    normalize: Annotated[bool, typer.Option(help="Use normalised scores.")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum tokens to generate.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="Sampling seed.")] = None,
    n: Annotated[int | None, typer.Option(help="Number of answers.")] = None,
    stream: Annotated[bool, typer.Option(help="Print tokens as they arrive.")] = False,
    raw: Annotated[bool, typer.Option(help="Continue PROMPT without the chat template.")] = False,
    url: Annotated[str, typer.Option(help="Address of the server.")] = URL,
    api_key: Annotated[str | None, typer.Option(help="Key (or TRIMTAB_API_KEY).")] = None,
) -> None:
    """Send PROMPT to a running server and print the guided answer."""
    from trimtab_server import client
    from trimtab_server.settings import weights

    fields = {
        "prompt": prompt if raw else None,
        "messages": None if raw else [{"role": "user", "content": prompt}],
        "beta": beta,
        "kl_budget": kl_budget,
        "k": k,
        "mass": mass,
        "tail": tail,
        "normalize": normalize or None,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "n": n,
    }
    body = {name: value for name, value in fields.items() if value is not None}
    key = api_key or os.environ.get("TRIMTAB_API_KEY")
    try:
        if scorer:
            body["scorers"] = weights(scorer)
        for line in client.generate(url, body, key, stream=stream):
            typer.echo(line, nl=False)
    except (TrimtabError, ValueError) as error:
        typer.echo(f"\ntrimtab: {error}", err=True)
        raise typer.Exit(1) from None


def main() -> None:
    """Entry point of the `trimtab` command."""
    app()


if __name__ == "__main__":
    main()
