"""The server's errors, under trimtab.errors.TrimtabError.

TrimtabError
├── InvalidRequest        400  invalid_request_error
├── Unauthorized          401  authentication_error
├── Forbidden             403  permission_error
├── UnknownModel          404  not_found_error
├── UnknownMethod         405  invalid_request_error
├── SlowRequest           408  timeout_error
├── ScorerInUse           409  conflict_error
├── BodyTooLarge          413  request_too_large
├── UnsupportedMediaType  415  invalid_request_error
├── Busy                  429  rate_limit_error
├── HeadersTooLarge       431  request_too_large
├── StartError            (the server does not start; the command prints it and exits)
├── UpstreamFailed        502  upstream_error
├── NotReady              503  service_unavailable_error
│   └── Stopping          503  service_unavailable_error (with Retry-After)
├── SlowLoad              504  timeout_error
└── UpstreamTimeout       504  upstream_error
"""

from collections.abc import Iterable, Mapping

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse

from trimtab.errors import InvalidRequest, NotReady, ScorerFault, TrimtabError

SHOWN = 3
"""Most validation errors that one answer reports."""
TOLD = "trimtab_told"
"""Entry of a request's scope: its refusal is ours, and needs no rewriting (refusals.py)."""


class Unauthorized(TrimtabError):
    """The request carries no API key, or a wrong one."""

    status = 401
    type = "authentication_error"


class Forbidden(TrimtabError):
    """The key is good, but not for this; or the server does not do this at all."""

    status = 403
    type = "permission_error"


class ScorerInUse(TrimtabError):
    """The scorer cannot go: others rest on it."""

    status = 409
    type = "conflict_error"


class UnknownModel(TrimtabError):
    """The request names a model that this server does not have."""

    status = 404
    type = "not_found_error"


class UnknownMethod(TrimtabError):
    """The request's method is one that no route has."""

    status = 405
    type = "invalid_request_error"


class SlowRequest(TrimtabError):
    """The request's headers or body did not arrive in time."""

    status = 408
    type = "timeout_error"


class BodyTooLarge(TrimtabError):
    """The request's body is larger than this server reads."""

    status = 413
    type = "request_too_large"


class UnsupportedMediaType(TrimtabError):
    """The request's body is not declared as JSON."""

    status = 415
    type = "invalid_request_error"


class Busy(TrimtabError):
    """The server has as many requests as it takes at once; the next may be sent a little later."""

    status = 429
    type = "rate_limit_error"


class HeadersTooLarge(TrimtabError):
    """The request has more headers than this server reads, or larger ones."""

    status = 431
    type = "request_too_large"


class StartError(TrimtabError):
    """The server cannot start as asked."""


class UpstreamFailed(TrimtabError):
    """The upstream refused a call, or gave no answer that can be used."""

    status = 502
    type = "upstream_error"


class SlowLoad(TrimtabError):
    """A scorer was not read in time; what was served before is still there."""

    status = 504
    type = "timeout_error"


class UpstreamTimeout(TrimtabError):
    """The upstream did not answer in time."""

    status = 504
    type = "upstream_error"


class Stopping(NotReady):
    """The server ends, or its engine has died."""


def headers(error: TrimtabError) -> dict[str, str]:
    """What the HTTP answer says beside the error."""
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, Busy):
        return {"Retry-After": "1"}
    return {"Retry-After": "5", "Connection": "close"} if isinstance(error, Stopping) else {}


def response(error: TrimtabError) -> JSONResponse:
    """The error as an HTTP answer in OpenAI's shape."""
    return JSONResponse(error.body(), error.status, headers(error))


async def handle(request: Request, error: Exception) -> JSONResponse:
    """Exception handler for every TrimtabError that leaves a route."""
    assert isinstance(error, TrimtabError)
    request.scope[TOLD] = True
    return response(error)


def scorer_failed(error: Mapping[str, str]) -> ScorerFault:
    """What a request is told whose record holds a scorer's error."""
    return ScorerFault(
        f"scorer '{error['scorer']}' failed while it steered this request ({error['message']}). "
        "Leave it out, or send on_error 'unguided' to go on as the base model.",
        code="scorer_failed",
    )


def unreadable(scorer: str, reason: str) -> InvalidRequest:
    """What a request gets whose conversation a scorer's chat template refuses."""
    return InvalidRequest(
        f"scorer '{scorer}' cannot read this conversation: its chat template refuses it "
        f"({reason}). Change the messages, or leave the scorer out.",
        param="messages",
    )


def invalid(error: ValidationError, fields: Iterable[str]) -> InvalidRequest:
    """Explain a validation error: at most SHOWN fields, never their values."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    known = set(fields)
    shown: dict[str, None] = {}
    for detail in details[:SHOWN]:
        name = str(detail["loc"][0]) if detail["loc"] else ""
        if detail["type"] == "extra_forbidden":
            shown["there is an unknown field; the fields are " + ", ".join(sorted(known))] = None
        else:
            shown[f"{name}: {detail['msg']}" if name else detail["msg"]] = None
    more = f" (and {len(details) - SHOWN} more)" if len(details) > SHOWN else ""
    first = str(details[0]["loc"][0]) if details[0]["loc"] else ""
    return InvalidRequest(
        "Invalid request: " + "; ".join(shown) + more + ".",
        param=first if first in known else None,
    )
