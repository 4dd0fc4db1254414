"""How resumable commands end: an error or a signal prints one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from trimtab.errors import TrimtabError
from trimtab_server.shutdown import Signals


@contextmanager
def resumable() -> Iterator[None]:
    """Turn errors into one line on stderr and exit status 1.

    SIGINT and SIGTERM end the process and its children at once; files already written are whole.
    """
    with Signals("stopped; run the same command again to resume."):
        try:
            yield
        except (TrimtabError, ValueError, OSError) as error:
            typer.echo(f"trimtab: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None
