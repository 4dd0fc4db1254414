"""`trimtab batch`: send a file of requests to a running server."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab_server.commands.options import ADDRESS, ApiKey, Url
from trimtab_server.commands.resumable import resumable


def batch(
    requests: Annotated[
        Path, typer.Argument(help="JSON Lines in OpenAI's batch format: custom_id, url, body.")
    ],
    out: Annotated[Path, typer.Option(help="JSON Lines of answers; a started file is resumed.")],
    url: Url = ADDRESS,
    api_key: ApiKey = None,
    concurrency: Annotated[
        int, typer.Option(help="Requests in flight at once.", min=1, max=1024)
    ] = 16,
) -> None:
    """Send every request of a file to a running server, and write the answers to a file.

    A body has the fields of its route, including guidance. After an interruption, run the same
    command again to resume.
    """
    from trimtab_server.commands import batch_job

    with resumable():
        answers, errors = batch_job.run(requests, out, url, api_key, concurrency)
        typer.echo(f"{answers} answers in {out}, {errors} of them errors.")
