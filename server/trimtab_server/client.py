"""The client of POST /generate, for `trimtab generate`."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
from httpx_sse import EventSource

from trimtab.errors import TrimtabError

TIMEOUT = httpx.Timeout(300, connect=5)


class ServerUnreachable(TrimtabError):
    """No server answered."""


class Refused(TrimtabError):
    """The server answered with an error."""


def generate(url: str, body: Mapping[str, Any], key: str | None, *, stream: bool) -> Iterator[str]:
    """Yield pieces of text to print: the answer, then a line about guidance.

    Raises:
        ServerUnreachable: no server answers at `url`.
        Refused: the server refused the request, or failed during the answer.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT) as http:
            yield from _stream(http, body) if stream else _whole(http, body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerUnreachable(
            f"no server answers at {url} ({type(error).__name__}); start one with "
            "'trimtab serve demo', or say where it is with --url."
        ) from None


def _whole(http: httpx.Client, body: Mapping[str, Any]) -> Iterator[str]:
    answer = http.post("/generate", json=body)
    _check(answer)
    for choice in answer.json()["choices"]:
        yield choice["text"] + "\n" + _summary(choice["guidance"])


def _stream(http: httpx.Client, body: Mapping[str, Any]) -> Iterator[str]:
    with http.stream("POST", "/generate", json={**body, "stream": True}) as answer:
        if answer.is_error:
            answer.read()
        _check(answer)
        for event in EventSource(answer).iter_sse():
            if event.data == "[DONE]":
                return
            data = json.loads(event.data)
            if "error" in data:
                raise Refused(data["error"]["message"])
            for choice in data["choices"]:
                yield choice["text"]
                if "guidance" in choice:
                    yield "\n" + _summary(choice["guidance"])


def _check(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    try:
        message = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"the server answered with HTTP status {answer.status_code}."
    raise Refused(message)


def _summary(guidance: Mapping[str, Any] | None) -> str:
    if guidance is None:
        return ""
    scores = " · ".join(f"{name} {value:+.3f}" for name, value in guidance["scores"].items())
    return f"[{scores} · KL {guidance['kl']:.2f} nats · {guidance['steps']} steps]\n"
