"""`trimtab chat`: a conversation with a running server, in a terminal."""

from contextlib import suppress
from typing import Annotated, Any

import typer

from trimtab.errors import TrimtabError
from trimtab_server import settings
from trimtab_server.commands.generate import URL

HINT = "Type a message, or /help for the commands."


def chat(
    scorer: Annotated[
        list[str] | None,
        typer.Option(help="NAME=WEIGHT; repeatable.", show_default="the server's"),
    ] = None,
    beta: Annotated[
        float | None, typer.Option(help="Strength; 0 is the base model.", show_default="1.0")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Maximum tokens per answer.", min=1)] = 256,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy.", show_default="1.0")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Sampling seed.", show_default="a new one")
    ] = None,
    url: Annotated[str, typer.Option(help="Address of the server.")] = URL,
    api_key: Annotated[
        str | None, typer.Option(help="API key.", metavar="KEY", envvar="TRIMTAB_API_KEY")
    ] = None,
) -> None:
    """Talk with a running server: steer with /scorer NAME=WEIGHT and /beta NUMBER.

    Ctrl-C stops an answer; at the prompt, Ctrl-C and Ctrl-D end the session.
    """
    from trimtab_server import client
    from trimtab_server.commands.chat_session import Session

    with suppress(ImportError):  # arrow keys and earlier lines, where the platform has them
        import readline  # noqa: F401

    options: dict[str, Any] = {"beta": beta, "model": model, "max_tokens": max_tokens}
    options |= {"temperature": temperature, "seed": seed}
    fields = {name: value for name, value in options.items() if value is not None}
    try:
        if scorer:
            fields["scorers"] = settings.weights(scorer)
        with client.connected(url, api_key) as http:
            session = Session(http, fields, system)
            typer.echo(session.greeting())
            typer.echo(HINT)
            while (line := _read()) is not None and _answer(session, line):
                pass
    except (TrimtabError, ValueError) as error:
        typer.echo(f"trimtab: {error}", err=True)
        raise typer.Exit(1) from None


def _read() -> str | None:
    """The next line; None at the end of input."""
    try:
        return input("> ")
    except EOFError:
        typer.echo()
        return None


def _answer(session: Any, line: str) -> bool:
    """Print what the session says to a line; False when it ends."""
    from trimtab_server.client import Refused
    from trimtab_server.commands.chat_session import Quit

    try:
        for text in session.say(line.strip()):
            typer.echo(text, nl=False)
    except Quit:
        return False
    except KeyboardInterrupt:
        typer.echo("\n[stopped; this turn is forgotten]")
    except (Refused, ValueError) as error:
        typer.echo(f"trimtab: {error}", err=True)
    return True
