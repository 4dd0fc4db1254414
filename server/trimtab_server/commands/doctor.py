"""`trimtab doctor`: what this machine can serve, and what a start would refuse."""

import json
from pathlib import Path
from typing import Annotated

import typer

MARKS = {"ok": "ok", "note": "note", "refused": "REFUSED"}


def doctor(
    model: Annotated[
        str, typer.Argument(help="Base to serve: a directory, a hub name, demo or smollm2.")
    ] = "demo",
    scorer: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH[,key=value...], as for serve; repeatable."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Check this machine: versions, devices, memory, port, cache, disk, settings and scorers.

    Says what `trimtab serve` would refuse, and what to do. Starts nothing and fetches nothing.
    TRIMTAB_* variables count as for serve. The exit status is 1 if something would be refused.
    """
    # Imported here because torch takes seconds.
    from trimtab_server.commands import doctor_checks

    options = {"model": model, "scorer": scorer, "host": host, "port": port}
    checks = []
    for check in doctor_checks.checks(options, config):
        checks.append(check)
        if not json_:
            typer.echo(f"{MARKS[check.state]:<8} {check.name:<9} {check.detail}")
            if check.remedy:
                typer.echo(f"{'':<18} → {check.remedy}")
    if json_:
        typer.echo(json.dumps([vars(check) for check in checks], indent=2, ensure_ascii=False))
    if any(check.state == "refused" for check in checks):
        raise typer.Exit(1)
