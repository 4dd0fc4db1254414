"""An error in the shape of a route's protocol: OpenAI's or Anthropic's."""

from typing import Any

from trimtab.errors import TrimtabError
from trimtab_server.events import DONE, event

MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"


def body(path: str, error: TrimtabError) -> dict[str, Any]:
    """An error as the whole answer of the route at `path`."""
    if path.startswith(MESSAGES):
        return {"type": "error", "error": {"type": error.type, "message": error.message}}
    return error.body()


def last_events(path: str, error: TrimtabError, sent: int) -> bytes:
    """The end of a stream of the route at `path` after `sent` events: the error and [DONE]."""
    if path.startswith(RESPONSES):
        fields = {
            "type": "error",
            "code": error.code or error.type,
            "message": error.message,
            "param": error.param,
            "sequence_number": sent,
        }
        return f"event: error\n{event(fields)}{DONE}".encode()
    head = "event: error\n" if path.startswith(MESSAGES) else ""
    return f"{head}{event(body(path, error))}{DONE}".encode()
