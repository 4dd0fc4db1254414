"""The server's errors, under trimtab.errors.TrimtabError.

TrimtabError
├── InvalidRequest        400  invalid_request_error
├── Unauthorized          401  authentication_error
├── Forbidden             403  permission_error
├── UnknownModel          404  not_found_error
├── UnknownPreset         404  not_found_error
├── UnknownMethod         405  invalid_request_error
├── SlowRequest           408  timeout_error
├── ScorerInUse           409  conflict_error
├── PresetInUse           409  conflict_error
├── BodyTooLarge          413  request_too_large
├── UnsupportedMediaType  415  invalid_request_error
├── Busy                  429  rate_limit_error
├── HeadersTooLarge       431  request_too_large
├── NotReady              503  service_unavailable_error
│   └── Stopping          503  service_unavailable_error (with Retry-After)
└── SlowLoad              504  timeout_error
"""

import math
from collections.abc import Collection

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse

from trimtab import reasons
from trimtab.errors import InvalidRequest, NotReady, TrimtabError, UpstreamBusy

OWN_ERROR = "trimtab_own_error"
"""Scope entry of a request whose error is ours and needs no rewriting (refusals.py)."""


class Unauthorized(TrimtabError):
    """The request has no API key, or an unknown one."""

    status = 401
    type = "authentication_error"


class Forbidden(TrimtabError):
    """The key does not allow this, or the server does not offer it."""

    status = 403
    type = "permission_error"


class ScorerInUse(TrimtabError):
    """The scorer cannot be unloaded: a default, a preset or a composite needs it."""

    status = 409
    type = "conflict_error"


class PresetInUse(TrimtabError):
    """The preset cannot be changed: it is fixed or the default, or contradicts another one."""

    status = 409
    type = "conflict_error"


class UnknownModel(TrimtabError):
    """The request names a model that this server does not have."""

    status = 404
    type = "not_found_error"


class UnknownPreset(TrimtabError):
    """There is no preset of that name."""

    status = 404
    type = "not_found_error"


class UnknownMethod(TrimtabError):
    """No route has the request's method."""

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
    """The server is at its limit of concurrent requests; retry later."""

    status = 429
    type = "rate_limit_error"


class HeadersTooLarge(TrimtabError):
    """The request's headers are too many or too large."""

    status = 431
    type = "request_too_large"


class SlowLoad(TrimtabError):
    """A scorer was not read in time; the served scorers are unchanged."""

    status = 504
    type = "timeout_error"


class Stopping(NotReady):
    """The server is stopping, or its engine has died."""


def headers(error: TrimtabError) -> dict[str, str]:
    """Additional response headers for an error."""
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, UpstreamBusy):
        return {"Retry-After": str(math.ceil(error.after or 1))}
    if isinstance(error, Busy):
        return {"Retry-After": "1"}
    return {"Retry-After": "5", "Connection": "close"} if isinstance(error, Stopping) else {}


def response(error: TrimtabError) -> JSONResponse:
    """The error as an HTTP answer in OpenAI's shape."""
    return JSONResponse(error.body(), error.status, headers(error))


async def handle(request: Request, error: Exception) -> JSONResponse:
    """Exception handler for every TrimtabError that leaves a route."""
    assert isinstance(error, TrimtabError)
    request.scope[OWN_ERROR] = True
    return response(error)


def invalid(error: ValidationError, fields: Collection[str]) -> InvalidRequest:
    """Summarize a validation error: the first fields, never their values."""
    return InvalidRequest(
        f"Invalid request: {reasons.fields(error, fields)}.",
        param=reasons.first(error, fields),
    )
