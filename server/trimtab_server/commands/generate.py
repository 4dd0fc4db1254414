"""`trimtab generate`: one request to a running server."""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from trimtab import utility as utilities
from trimtab.errors import TrimtabError
from trimtab.params import MASS, K
from trimtab.utility import KINDS, Utility
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

APART = (
    "prompt",
    "messages",
    "prompt_token_ids",
    "answer_token_ids",
    "stop_token_ids",
    "scorer",
    "floor",
    "ceiling",
    "utility",
    "principle",
    "caution",
    "search",
    "k",
    "stream",
    "raw",
    "json_",
    "url",
    "api_key",
)
"""Options that are no field of the same name and value."""


def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="Message to the model.")] = None,
    scorer: Scorers = None,
    beta: Beta = None,
    kl_budget: Annotated[
        float | None, typer.Option(help="KL budget in nats, instead of --beta.")
    ] = None,
    floor: Annotated[
        list[str] | None,
        typer.Option(help="NAME=REWARD, a mean reward to reach; repeatable.", metavar="FLOOR"),
    ] = None,
    ceiling: Annotated[
        list[str] | None,
        typer.Option(help="NAME=REWARD, a mean reward to keep; repeatable.", metavar="CEILING"),
    ] = None,
    utility: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=mean, NAME=target:40, NAME=at_least:0.5, at_most or cvar; repeatable.",
            metavar="UTILITY",
        ),
    ] = None,
    principle: Annotated[
        list[str] | None,
        typer.Option(
            help="TEXT or TEXT=WEIGHT, put before the prompt to steer by what it changes; "
            "repeatable.",
            metavar="PRINCIPLE",
        ),
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="A principle of weight -1.", metavar="TEXT")
    ] = None,
    caution: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=LAMBDA, what an ensemble's spread costs; repeatable.", metavar="CAUTION"
        ),
    ] = None,
    paper: Annotated[
        str | None, typer.Option(help="k, mass and tail of a paper: args, pargs or vas.")
    ] = None,
    k: Annotated[
        str | None,
        typer.Option(
            help="Maximum candidates per step, or all.", metavar="NUMBER|all", show_default=str(K)
        ),
    ] = None,
    mass: Annotated[
        float | None,
        typer.Option(help="Total probability of the candidates.", show_default=str(MASS)),
    ] = None,
    tail: Annotated[str | None, typer.Option(help="mean or truncate.", show_default="mean")] = None,
    normalize: Annotated[bool, typer.Option("--normalize", help="Use normalised scores.")] = False,
    on_error: Annotated[
        str | None,
        typer.Option(help="If a scorer fails: fail or unguided.", show_default="fail"),
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Keep a record of every step; needs --json.")
    ] = False,
    search: Annotated[
        str | None,
        typer.Option(help="METHOD[,key=value...], such as best_of_n,n=16.", metavar="METHOD"),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens to generate.", show_default="128")
    ] = None,
    min_tokens: Annotated[
        int | None, typer.Option(help="Minimum tokens to generate.", show_default="0")
    ] = None,
    temperature: Temperature = None,
    top_p: Annotated[
        float | None, typer.Option(help="Nucleus probability.", show_default="1.0")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Most likely tokens to sample from.", show_default="0: all")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Least probability, relative to the largest.", show_default="0.0"),
    ] = None,
    seed: Seed = None,
    n: Annotated[int | None, typer.Option(help="Number of answers.", show_default="1")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends an answer; repeatable.")
    ] = None,
    stop_token_ids: Annotated[
        str | None, typer.Option(help="Tokens that end an answer: 1,2,3.", metavar="IDS")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the end token.")
    ] = False,
    presence_penalty: Annotated[
        float | None, typer.Option(help="Against tokens that occurred.", show_default="0.0")
    ] = None,
    frequency_penalty: Annotated[
        float | None, typer.Option(help="The same, by how often.", show_default="0.0")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="The same, as a divisor of logits.", show_default="1.0")
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(help="Log-probabilities of so many tokens per step; needs --json."),
    ] = None,
    model: Model = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print tokens as they arrive.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the whole answer as JSON.")] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue PROMPT without the chat template.")
    ] = False,
    messages: Annotated[
        Path | None,
        typer.Option(help="JSON file with a list of messages, instead of PROMPT.", metavar="FILE"),
    ] = None,
    prompt_token_ids: Annotated[
        str | None, typer.Option(help="Token ids 1,2,3 instead of PROMPT.", metavar="IDS")
    ] = None,
    answer_token_ids: Annotated[
        str | None, typer.Option(help="Continue an answer of token ids 1,2,3.", metavar="IDS")
    ] = None,
    url: Url = ADDRESS,
    api_key: ApiKey = None,
) -> None:
    """Send PROMPT to a running server and print the guided answer.

    Without an option, the server's default holds. Several answers are printed one after another.
    """
    from trimtab_server import client

    try:
        fields = body(context.params)
        with client.connected(url, api_key) as http:
            if json_:
                answer = client.whole(http, fields)
                typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
                return
            choices = (
                client.parts(http, fields) if stream else client.whole(http, fields)["choices"]
            )
            for text in client.texts(choices):
                typer.echo(text, nl=False)
    except (TrimtabError, OSError, ValueError) as error:
        typer.echo(f"trimtab: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None


def body(options: dict[str, Any]) -> dict[str, Any]:
    """The body of POST /generate for the options that were used.

    Raises:
        ValueError, OSError: an option cannot be read.
    """
    fields = {
        name: value
        for name, value in options.items()
        if name not in APART and value is not None and value is not False and value not in ([], ())
    }
    _refuse(options)
    forms: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "prompt_token_ids": ("prompt_token_ids", _ids),
        "answer_token_ids": ("answer_token_ids", _ids),
        "stop_token_ids": ("stop_token_ids", _ids),
        "messages": ("messages", lambda path: json.loads(path.read_text(encoding="utf-8"))),
        "scorer": ("scorers", settings.weights),
        "floor": ("floors", partial(_numbers, "--floor", "NAME=REWARD, such as kindness=0.5")),
        "ceiling": ("ceilings", partial(_numbers, "--ceiling", "NAME=REWARD, such as brevity=0.8")),
        "utility": ("utility", _utility),
        "principle": ("principles", lambda texts: [_principle(text) for text in texts]),
        "caution": ("caution", partial(_numbers, "--caution", "NAME=LAMBDA, such as kindness=1")),
        "search": ("search", parse_search),
        "k": ("k", lambda text: int(text) if text.isascii() and text.isdigit() else text),
    }
    for option, (name, read) in forms.items():
        if options[option]:
            fields[name] = read(options[option])
    if options["prompt"] is not None:
        message = [{"role": "user", "content": options["prompt"]}]
        fields |= {"prompt": options["prompt"]} if options["raw"] else {"messages": message}
    return fields


def _refuse(options: dict[str, Any]) -> None:
    """Refuse options that do not go together."""
    sources = ("prompt", "messages", "prompt_token_ids")
    if sum(options[name] is not None for name in sources) != 1:
        raise ValueError("give exactly one of PROMPT, --messages and --prompt-token-ids.")
    if options["stream"] and options["json_"]:
        raise ValueError("--json prints a whole answer; leave --stream out.")
    for name in ("trace", "logprobs"):
        if options[name] and not options["json_"]:
            raise ValueError(f"--{name} is only seen in the whole answer; add --json.")


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError("token ids must be whole numbers with commas, such as 1,2,3.") from None


def _numbers(option: str, form: str, pairs: Sequence[str]) -> dict[str, float]:
    if not all("=" in pair for pair in pairs):
        raise ValueError(f"{option} must have the form {form}.")
    numbers: dict[str, float] = settings.weights(pairs)
    return numbers


def _utility(pairs: Sequence[str]) -> dict[str, Utility]:
    try:
        return {name: utilities.read(text) for name, _, text in _split(pairs)}
    except ValueError:
        raise ValueError(
            "--utility must have the form NAME=mean or NAME=KIND:NUMBER, such as length=target:40; "
            f"the kinds are {', '.join(KINDS)}."
        ) from None


def _principle(text: str) -> dict[str, Any]:
    """`TEXT=WEIGHT`, or a text alone, whose weight is 1."""
    before, equals, weight = text.rpartition("=")
    try:
        return {"text": before, "weight": float(weight)} if equals else _alone(text)
    except ValueError:
        return _alone(text)


def _alone(text: str) -> dict[str, Any]:
    return {"text": text, "weight": 1.0}


def parse_search(text: str) -> dict[str, Any]:
    """`METHOD[,key=value...]` as the `search` field of a request.

    Raises:
        ValueError: the text has another form.
    """
    method, *pairs = re.split(r",(?![^{]*})", text)  # a value may be an object
    if not all("=" in pair for pair in pairs):
        raise ValueError("--search must have the form METHOD[,key=value...], as best_of_n,n=16.")
    return {"method": method, **{name: value(text) for name, _, text in _split(pairs)}}


def _split(pairs: Sequence[str]) -> list[tuple[str, str, str]]:
    return [pair.partition("=") for pair in pairs]


def value(text: str) -> Any:
    """A value of a field: JSON, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
