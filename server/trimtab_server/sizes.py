"""Size limits on the parts of a body, checked before any costly processing.

The time of all later steps grows with the length, for some (templates, validation errors, the
patterns with which vLLM cleans its messages) faster than linearly. So text is bounded by the
model's context, names and keys by generous constants, and lists by their number of entries. One
pass over the parsed body, which is passed on in the scope.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from trimtab.errors import InvalidRequest, TrimtabError
from trimtab_server import bodies
from trimtab_server.cap_settings import NARROW, Caps
from trimtab_server.errors import response
from trimtab_server.limits import replay
from trimtab_server.request_ids import check_ids

SHORT = 1000
"""Maximum characters of a short text: a name, an id, a stop string."""
MAX_KEY = 256
MAX_FIELDS = 256
MAX_VALUES = 2**15
MAX_ENTRIES = 2048
ENTRIES = {"content": 256, "input": 1024, "tools": 512, "functions": 512}
"""Maximum entries of lists whose invalid entries cost vLLM's validation much."""
VOCABULARY = 2**20
"""Maximum entries of a list of token ids other than a prompt."""
PATH = 1000

PROMPTS = {"prompt", "prompt_token_ids", "messages", "input", "system", "instructions", "suffix"}
PROMPTS |= {"documents", "tokens", "token_ids", "answer_token_ids"}
PROMPTS |= {"comparisons", "candidates"}
SCHEMAS = {"tools", "functions", "response_format", "structured_outputs", "text", "chat_template"}
SCHEMAS |= {"chat_template_kwargs", "output_config"}
SCHEMA = 2**16
"""Maximum characters of a text in one of SCHEMAS."""
NAMES = {"role", "name", "id", "type", "model", "tool_call_id", "call_id", "status", "url"}
"""Keys whose texts are short in any field."""
MEDIA = {"url", "data", "file_data", "image_url", "audio_url", "video_url", "prompt_embeds"}
"""Keys whose texts hold media, if the model accepts media."""
KNOWN = PROMPTS | SCHEMAS | NAMES | {"user", "stop", "metadata", "cache_salt", "request_id"}
"""Fields that an error may name: they are not client input."""


@dataclass(frozen=True)
class Bounds:
    """Size limits that follow from the model's context."""

    tokens: int
    text: int  # characters
    body: int  # bytes
    media: bool = False  # whether a request may contain images, sounds or embeddings

    @staticmethod
    def of(
        tokens: int, longest: int, max_body_bytes: int, media: bool = False, caps: Caps = NARROW
    ) -> "Bounds":
        """Bounds for a context of `tokens`, each of at most `longest` characters.

        text = min(tokens · longest, max(2¹⁸, 16 · tokens)) characters. A body may contain
        caps.prompts full prompts at 32 bytes per token, plus 2¹⁸ bytes.
        """
        text = min(tokens * longest, max(2**18, tokens * 16))
        full = 2**18 + caps.prompts * tokens * 32
        body = max_body_bytes if media else min(max_body_bytes, full)
        return Bounds(tokens, text, body, media)


class Sizes:
    """ASGI middleware: parses a JSON body strictly, checks its parts, and passes it on."""

    def __init__(self, app: ASGIApp, bounds: Bounds) -> None:
        self.app = app
        self.bounds = bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. BodyLimit delivers its body as one message."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            if len(scope["path"]) > PATH:
                raise InvalidRequest(f"the path has more than {PATH} characters.")
            check_ids(scope, {})
            if scope["method"] in ("POST", "PUT", "PATCH"):
                body = (await receive()).get("body", b"")
                if body and bodies.may_be_json(scope):
                    fields = bodies.loads(body)
                    check(fields, self.bounds)
                    check_ids(scope, fields)
                    scope = {**scope, bodies.PARSED: fields}
                receive = replay(body, receive)
        except TrimtabError as error:
            await response(error)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def check(fields: Mapping[str, Any], bounds: Bounds) -> None:
    """Refuse a body with a part that is too large.

    Raises:
        InvalidRequest: naming the field and its limit.
    """
    if len(fields) > MAX_FIELDS:
        raise InvalidRequest(f"the body has more than {MAX_FIELDS} fields.")
    if fields.get("truncate_prompt_tokens") is not None:  # a prompt may then be longer
        bounds = Bounds(4 * bounds.tokens, 4 * bounds.text, bounds.body, bounds.media)
    left = MAX_VALUES
    values: list[tuple[str, str, Any]] = [(key, key, value) for key, value in fields.items()]
    while values:
        field, key, value = values.pop()
        if isinstance(value, str):
            _check_text(field, key, value, bounds)
        elif isinstance(value, list) and all(type(entry) is int for entry in value):
            most = bounds.tokens if field in PROMPTS else VOCABULARY
            if len(value) > most:
                raise _over(field, f"{most} token ids")
        elif isinstance(value, list | dict):
            most = ENTRIES.get(key, MAX_ENTRIES)
            if isinstance(value, list) and len(value) > most:
                raise _over(field, f"{most} entries in a list")
            left -= len(value)
            if left < 0:
                raise InvalidRequest(f"the body has more than {MAX_VALUES} values.")
            if isinstance(value, dict):
                if any(len(name) > MAX_KEY for name in value):
                    raise _over(field, f"{MAX_KEY} characters in a key")
                values += [(field, name, entry) for name, entry in value.items()]
            else:
                values += [(field, key, entry) for entry in value]


def _check_text(field: str, key: str, text: str, bounds: Bounds) -> None:
    if len(text) <= SHORT or (bounds.media and key in MEDIA):
        return
    if key in NAMES or field not in PROMPTS | SCHEMAS:
        most = SHORT
    else:
        most = bounds.text if field in PROMPTS else min(bounds.text, SCHEMA)
    if len(text) > most:
        raise _over(field, f"{most} characters in a text")


def _over(field: str, limit: str) -> InvalidRequest:
    name = field if field in KNOWN else None
    message = f"{name or 'a field'} has more than {limit}, this server's limit."
    return InvalidRequest(message, param=name)
