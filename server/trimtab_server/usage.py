"""How a command line ends: errors of usage in one line, with the name that was meant."""

import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import NoReturn

import typer

USAGE = 2
INTERRUPTED = 130
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""typer does not export it."""


def run(app: typer.Typer) -> NoReturn:
    """Run the command line, and exit with its status; Ctrl-C is 130."""
    try:
        status = app(prog_name="trimtab", standalone_mode=False)
    except UsageError as error:
        text = error.format_message()  # type: ignore[attr-defined]
        if not text or "\n" in text:  # a group without a command shows its help
            typer.echo(text, nl=False)
        else:
            typer.echo(f"trimtab: {line(error, text)}", err=True)
        sys.exit(USAGE)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo(err=True)
        sys.exit(INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def line(error: BaseException, text: str) -> str:
    """An error of usage in one line; it names what was meant, or else where the help is."""
    text = " ".join(re.sub(r"\(?(Possible options?|Did you mean).*$", "", text).split())
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "trimtab"
    wrong = getattr(error, "option_name", None) or _quoted(text)
    known = _names(context) if context else []
    meant = closest(wrong, known) if wrong else None
    end = f"did you mean {meant}?" if meant else f"see `{path} --help`."
    return f"{text.rstrip('.')}; {end}"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like another; None if none is."""
    return next(iter(get_close_matches(name, list(known), n=1, cutoff=0.6)), None)


def _quoted(text: str) -> str | None:
    """The command in "No such command 'serv'"."""
    match = re.fullmatch(r"No such command '?([\w-]+)'?.*", text)
    return match[1] if match else None


def _names(context: typer.Context) -> list[str]:
    """Flags and commands that fit in the place of an error."""
    flags = [flag for one in context.command.params for flag in one.opts if flag.startswith("-")]
    return [*flags, *getattr(context.command, "commands", ())]
