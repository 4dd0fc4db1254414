"""The client of POST /generate, for `trimtab generate` and `trimtab chat`."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
from httpx_sse import EventSource

from trimtab.errors import TrimtabError

TIMEOUT = httpx.Timeout(300, connect=5)


class ServerUnreachable(TrimtabError):
    """No server answered."""


class Refused(TrimtabError):
    """The server answered with an error."""


@contextmanager
def connected(url: str, key: str | None) -> Iterator[httpx.Client]:
    """A client of the server at `url`.

    Raises:
        ServerUnreachable: no server answers there, in this block.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT) as http:
            yield http
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerUnreachable(
            f"no server answers at {url} ({type(error).__name__}); start one with "
            "'trimtab serve demo', or say where it is with --url."
        ) from None


def whole(http: httpx.Client, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a body of POST /generate.

    Raises:
        Refused: the server refused the request.
    """
    answer = http.post("/generate", json=body)
    check(answer)
    content: dict[str, Any] = answer.json()
    return content


def parts(http: httpx.Client, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The parts of choices as they arrive.

    Raises:
        Refused: the server refused the request, or failed during the answer.
    """
    with http.stream("POST", "/generate", json={**body, "stream": True}) as answer:
        if answer.is_error:
            answer.read()
        check(answer)
        for event in EventSource(answer).iter_sse():
            if event.data == "[DONE]":
                return
            data = json.loads(event.data)
            if "error" in data:
                raise Refused(data["error"]["message"])
            yield from data["choices"]


def texts(choices: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Text to print for parts of choices: one choice after another, each with its summary.

    Parts of the first choice that has not ended are passed on at once; those of later ones wait.
    """
    waiting: dict[int, list[str]] = {}
    ended: set[int] = set()
    current = 0
    for choice in choices:
        index, text = choice["index"], choice["text"]
        if choice["finish_reason"] is not None:
            text += "\n" + summary(choice.get("guidance"))
            ended.add(index)
        if index == current:
            yield text
        else:
            waiting.setdefault(index, []).append(text)
        while current in ended:
            current += 1
            yield from waiting.pop(current, ())


def check(answer: httpx.Response) -> None:
    """Raise Refused, with the server's message, unless an answer is a success."""
    if answer.is_success:
        return
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"the server answered with HTTP status {answer.status_code}."
    raise Refused(message)


def summary(guidance: Mapping[str, Any] | None) -> str:
    """One line about a choice's record; empty without one."""
    if guidance is None:
        return ""
    scores = " · ".join(f"{name} {value:+.3f}" for name, value in guidance["scores"].items())
    return f"[{scores} · KL {guidance['kl']:.2f} nats · {guidance['steps']} steps]\n"
