"""Load a scorer on all servers of a fleet, or on none.

1. Every server loads and checks a version that no request uses yet. If one server fails, all others
   drop theirs, and nothing has changed anywhere.
2. Every server serves its version. This reads no file and allocates nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from trimtab.errors import TrimtabError

TIMEOUT = httpx.Timeout(700, connect=5)
"""A server may take 300 seconds to read a checkpoint, and 300 to check it."""
TRIES = 3


@dataclass(frozen=True)
class Reply:
    """What a server said: its body, or the reason why there is none."""

    url: str
    body: Mapping[str, Any]
    problem: str | None = None


def load(urls: Sequence[str], fields: Mapping[str, Any], key: str | None) -> list[Reply]:
    """Load on all servers, or on none; the replies say each server's version.

    Args:
        urls: addresses of the servers, each once.
        fields: of POST /v1/scorers: name, path, and optionally family, reference, alpha.
        key: the admin key of all servers.

    Raises:
        TrimtabError: it was loaded on none; or, after all had loaded it, a server did not answer
            any more. The message names those servers.
    """
    if len(set(urls)) < len(urls):
        raise TrimtabError("a server is named twice; name each one once.")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with (
        httpx.Client(headers=headers, timeout=TIMEOUT) as http,
        ThreadPoolExecutor(len(urls)) as threads,
    ):

        def each(call: Callable[[Reply], Reply], replies: Sequence[Reply]) -> list[Reply]:
            return list(threads.map(call, replies))

        def stage(reply: Reply) -> Reply:
            body = {**fields, "serve": False}
            return _send(http, reply.url, "POST", "/v1/scorers", body)

        def version(reply: Reply, method: str) -> Reply:
            path = f"/v1/scorers/{reply.body['id']}/versions/{reply.body['version']}"
            return _send(http, reply.url, method, path)

        staged = each(stage, [Reply(url, {}) for url in urls])
        if failed := [reply for reply in staged if reply.problem]:
            loaded = [reply for reply in staged if not reply.problem]
            left = [r for r in each(lambda r: version(r, "DELETE"), loaded) if r.problem]
            note = f" It waits unused, for at most ten minutes, on {_list(left)}." if left else ""
            raise TrimtabError(f"nothing was changed on any server. {_reasons(failed)}{note}")
        served = each(lambda reply: version(reply, "POST"), staged)
        if failed := [reply for reply in served if reply.problem]:
            raise TrimtabError(
                f"all servers had loaded it, but {_list(failed)} did not begin to serve it; the "
                f"others serve it. {_reasons(failed)} Run the command again."
            )
        return served


def _send(
    http: httpx.Client, url: str, method: str, path: str, body: Mapping[str, Any] | None = None
) -> Reply:
    """Send a request; a connection that fails is tried again."""
    again = Retrying(
        retry=retry_if_exception_type(httpx.ConnectError),
        stop=stop_after_attempt(TRIES),
        wait=wait_fixed(1),
        reraise=True,
    )
    try:
        answer = again(http.request, method, url.rstrip("/") + path, json=body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Reply(url, {}, f"it does not answer ({type(error).__name__})")
    reply: Any = None
    with suppress(ValueError):
        reply = answer.json()
    if answer.is_success and isinstance(reply, dict):
        return Reply(url, reply)
    try:
        message = str(reply["error"]["message"])
    except (KeyError, TypeError):
        message = f"it answered with HTTP status {answer.status_code}"
    return Reply(url, {}, message.rstrip("."))


def _reasons(replies: Sequence[Reply]) -> str:
    return " ".join(f"{reply.url}: {reply.problem}." for reply in replies)


def _list(replies: Sequence[Reply]) -> str:
    return ", ".join(reply.url for reply in replies)
