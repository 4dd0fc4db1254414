"""How long work ends: an error or an interruption is one line, and the command goes on later."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from trimtab.errors import TrimtabError


@contextmanager
def resumable() -> Iterator[None]:
    """Turn what may go wrong into a line on stderr and an exit status, 130 if interrupted."""
    try:
        yield
    except (TrimtabError, ValueError, OSError) as error:
        typer.echo(f"trimtab: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("trimtab: stopped; the same command goes on from here.", err=True)
        raise typer.Exit(130) from None
