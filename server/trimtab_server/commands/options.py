"""Options that several commands share."""

from typing import Annotated

import typer

ADDRESS = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option(help="Address of the server.")]
ApiKey = Annotated[
    str | None, typer.Option(help="API key.", metavar="KEY", envvar="TRIMTAB_API_KEY")
]
Scorers = Annotated[
    list[str] | None, typer.Option(help="NAME=WEIGHT; repeatable.", show_default="the server's")
]
Beta = Annotated[
    float | None, typer.Option(help="Strength; 0 is the base model.", show_default="1.0")
]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.", show_default="1.0")]
Seed = Annotated[int | None, typer.Option(help="Sampling seed.", show_default="a new one")]
Model = Annotated[str | None, typer.Option(help="Name of the model.")]
