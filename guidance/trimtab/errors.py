"""The errors of Trimtab, one small tree.

    TrimtabError                 500  internal_error
    ├── InvalidGuidance          400  invalid_request_error
    ├── InvalidRequest           400  invalid_request_error
    ├── UnknownScorer            404  not_found_error
    ├── ScorerLoadError          500  scorer_load_error     (at start-up: the server does not start)
    ├── ScorerRefused            422  scorer_refused        (while serving: loaded scorers stay)
    ├── NoRoom                   409  insufficient_memory   (the same: not enough memory)
    ├── StartError               500  internal_error        (an engine or server does not start)
    ├── NotReady                 503  service_unavailable_error
    ├── ScorerFault              500  scorer_error          (only this request fails)
    ├── UpstreamFailed           502  upstream_error        (the same: see adapters/openai)
    ├── UpstreamBusy             429  rate_limit_error      (of a request that is forwarded whole)
    └── UpstreamTimeout          504  upstream_error

A message says what was wrong, what was expected, and what to do. It never contains the input.
"""

from typing import Any, ClassVar


class TrimtabError(Exception):
    """Base class; each subclass has its HTTP status and its OpenAI error type."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> dict[str, dict[str, Any]]:
        """The error in OpenAI's shape."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class InvalidGuidance(TrimtabError, ValueError):
    """A guidance field is malformed, out of range or unknown."""

    status = 400
    type = "invalid_request_error"


class InvalidRequest(TrimtabError):
    """A request's body is malformed, or a field other than guidance is out of range."""

    status = 400
    type = "invalid_request_error"


class UnknownScorer(TrimtabError, ValueError):
    """A request names a scorer that this server does not have."""

    status = 404
    type = "not_found_error"


class ScorerLoadError(TrimtabError):
    """A scorer cannot be loaded, or cannot be served exactly."""

    type = "scorer_load_error"


class ScorerRefused(TrimtabError):
    """A checkpoint for hot loading is broken, or of a kind that cannot be hot-loaded."""

    status = 422
    type = "scorer_refused"


class NoRoom(TrimtabError):
    """A checkpoint for hot loading does not fit into free memory."""

    status = 409
    type = "insufficient_memory"


class ScorerFault(TrimtabError):
    """A scorer failed, or gave a non-finite score, while it steered a request."""

    type = "scorer_error"


class NotReady(TrimtabError):
    """The server cannot steer requests: it is starting, or the engine or a scorer is unhealthy."""

    status = 503
    type = "service_unavailable_error"


class StartError(TrimtabError):
    """An engine or a server cannot start with these settings."""


class UpstreamFailed(TrimtabError):
    """The upstream refused a call, or its answer is unusable."""

    status = 502
    type = "upstream_error"


class UpstreamBusy(TrimtabError):
    """The upstream is at its limit. `after`: seconds to wait, if it says so."""

    status = 429
    type = "rate_limit_error"

    def __init__(self, message: str, *, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class UpstreamTimeout(TrimtabError):
    """The upstream did not answer in time."""

    status = 504
    type = "upstream_error"


def scorer_failed(scorer: str, message: str) -> ScorerFault:
    """The error for a request whose scorer failed."""
    return ScorerFault(
        f"scorer '{scorer}' failed while it steered this request ({message}). "
        "Leave it out, or send on_error 'unguided' to go on as the base model.",
        code="scorer_failed",
    )


def unscored(scorer: str, message: str) -> ScorerFault:
    """The error for answers that a scorer failed to score."""
    return ScorerFault(
        f"scorer '{scorer}' failed while it scored whole answers ({message}). Leave it out.",
        code="scorer_failed",
    )


def unreadable(scorer: str, reason: str) -> InvalidRequest:
    """The error for a conversation that a scorer cannot read, or its chat template refuses."""
    return InvalidRequest(
        f"scorer '{scorer}' cannot read this conversation ({reason}). Change the messages, or "
        "leave the scorer out.",
        param="messages",
    )
