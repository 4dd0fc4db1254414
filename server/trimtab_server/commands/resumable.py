"""How long work ends: an error or a signal is one line, and the command goes on later."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from trimtab.errors import TrimtabError
from trimtab_server.shutdown import Signals


@contextmanager
def resumable() -> Iterator[None]:
    """Turn what may go wrong into a line on stderr and an exit status.

    SIGINT and SIGTERM end the process at once, and its children: what is written is whole.
    """
    with Signals("stopped; the same command goes on from here."):
        try:
            yield
        except (TrimtabError, ValueError, OSError) as error:
            typer.echo(f"trimtab: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None
