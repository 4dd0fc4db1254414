"""The work of `trimtab batch`: requests in OpenAI's batch format, sent to a running server.

Each line of the file is one request: {"custom_id", "method": "POST", "url", "body"}. Each line of
the result is {"index", "custom_id", "response": {"status_code", "request_id", "body"}}, written
when the answer arrives, so in any order; `index` counts the requests from 0.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from tenacity import AsyncRetrying
from tqdm import tqdm

from trimtab_lab.rollouts.journal import Journal
from trimtab_models.data.faults import Fault, convert, word
from trimtab_models.data.lines import json_lines
from trimtab_models.retries import Retry, policy, retry_after
from trimtab_server.client import TIMEOUT, Refused, ServerUnreachable

TRY_LATER = frozenset({429, 503})
TRIES = 8
FIRST_WAIT = 1.0
LONGEST_WAIT = 30.0
RESUME = "Run the same command again to resume."


class Request(BaseModel):
    """One line of the file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    custom_id: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    method: Literal["POST"] = "POST"
    url: Annotated[str, StringConstraints(pattern=r"^(/[A-Za-z0-9_.-]+)+$", max_length=200)]
    body: dict[str, Any]


def read(path: Path) -> list[Request]:
    """The requests of a file.

    Raises:
        BrokenRows: invalid requests, or the same custom_id twice; with file and line.
        OSError: the file cannot be read.
    """
    custom_ids: set[str] = set()

    def parse(record: dict[str, Any]) -> Request:
        try:
            request = Request.model_validate(record)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            raise Fault(f"{word(field, 30)!r}: {first['msg']}") from None
        if request.body.get("stream"):
            raise Fault("'stream' is true; a batch has no streams")
        if request.custom_id in custom_ids:
            raise Fault(f"custom_id {word(request.custom_id)!r} is used twice")
        custom_ids.add(request.custom_id)
        return request

    return convert(json_lines(path), parse, "requests")


def run(source: Path, out: Path, url: str, key: str | None, concurrency: int) -> tuple[int, int]:
    """Send the requests without an answer in `out`; returns the numbers of answers and errors.

    A request that gets a 429 or 503 is sent again. Every other response is a result, including
    errors.

    Raises:
        ServerUnreachable: no server answers at `url`.
        Refused: a request got a 429 or 503 on every try; or it has guidance, which the server would
            ignore.
        TrimtabError: `out` holds the answers to another file of requests, or other data.
        BrokenRows, OSError: see `read`.
    """
    requests = read(source)
    settings = {"requests_sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    with Journal(out, settings) as journal:
        done = {record["index"] for record in journal.records}
        left = [index for index in range(len(requests)) if index not in done]
        results: list[Mapping[str, Any]] = list(journal.records)
        bar = tqdm(total=len(requests), initial=len(done), desc="requests", unit="request")

        def keep(result: Mapping[str, Any]) -> None:
            journal.append([result])
            results.append(result)
            bar.update()

        with bar:
            asyncio.run(_send(requests, left, url, key, concurrency, keep))
    errors = sum(result["response"]["status_code"] != 200 for result in results)
    return len(results), errors


async def _send(
    requests: Sequence[Request],
    left: Sequence[int],
    url: str,
    key: str | None,
    concurrency: int,
    keep: Callable[[Mapping[str, Any]], None],
) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    indices = iter(left)
    try:
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT) as http:
            if any(requests[index].body.get("guidance") is not None for index in left):
                await _check_guides(http)

            async def sender() -> None:
                for index in indices:
                    keep(_result(index, requests[index], await _post(http, requests[index])))

            await asyncio.gather(*(sender() for _ in range(concurrency)))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerUnreachable(
            f"no server answers at {url} ({type(error).__name__}); start one, or set "
            f"--url. {RESUME}"
        ) from None


async def _check_guides(http: httpx.AsyncClient) -> None:
    """Refuse a server without scorers: a stock vLLM server drops `guidance` without a word."""
    if (await http.get("/v1/scorers")).status_code == 404:
        raise Refused(
            "the requests have guidance, and the server has no scorers (GET /v1/scorers is a 404), "
            "so it would ignore it; leave guidance out, or set --url to a Trimtab server."
        )


async def _post(http: httpx.AsyncClient, request: Request) -> httpx.Response:
    """The server's response; a 429 or 503 is tried again."""

    async def post() -> httpx.Response:
        answer = await http.post(request.url, json=request.body)
        if answer.status_code in TRY_LATER:
            raise Retry("the server is busy", retry_after(answer.headers.get("retry-after")))
        return answer

    try:
        result: httpx.Response = await AsyncRetrying(**policy(TRIES, FIRST_WAIT, LONGEST_WAIT))(
            post
        )
    except Retry:
        raise Refused(f"the server was busy for {TRIES} tries of a request. {RESUME}") from None
    return result


def _result(index: int, request: Request, answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        body = {"error": {"message": "the answer is not JSON; is it a Trimtab server?"}}
    response = {
        "status_code": answer.status_code,
        "request_id": answer.headers.get("x-request-id"),
        "body": body,
    }
    return {"index": index, "custom_id": request.custom_id, "response": response}
