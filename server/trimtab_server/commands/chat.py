"""`trimtab chat`: a conversation with a running server, in a terminal."""

from contextlib import suppress
from typing import Annotated, Any

import typer

from trimtab.errors import TrimtabError
from trimtab_server import settings
from trimtab_server.commands.options import (
    ADDRESS,
    ApiKey,
    Beta,
    Model,
    Scorers,
    Seed,
    Temperature,
    Url,
)

HINT = "Type a message, or /help for the commands."


def chat(
    scorer: Scorers = None,
    beta: Beta = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    model: Model = None,
    max_tokens: Annotated[int, typer.Option(help="Maximum tokens per answer.", min=1)] = 256,
    temperature: Temperature = None,
    seed: Seed = None,
    url: Url = ADDRESS,
    api_key: ApiKey = None,
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
