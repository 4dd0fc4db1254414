"""The name of a preset's model in an answer, while it is sent."""

import json
from typing import Any

from starlette.types import Send

from trimtab_server.rewriting import Rewritten


class NamedAnswer(Rewritten):
    """Writes the model that a request named into its answer, in the JSON or in each event.

    An answer, a stored response or a message names the model that generated it, at its top level.
    """

    def __init__(self, send: Send, model: str) -> None:
        super().__init__(send)
        self.model = model

    def whole(self, body: bytes) -> bytes:
        """See Rewritten.whole; what is not an answer in JSON stays as it is."""
        kind = dict(self.start["headers"]).get(b"content-type", b"")
        good = self.start["status"] == 200 and kind.startswith(b"application/json")
        return self.event(body) if good else body

    def event(self, data: bytes) -> bytes:
        """See Rewritten.event."""
        if b'"model"' not in data:
            return data
        answer = json.loads(data)
        for one in answer if isinstance(answer, list) else [answer]:
            self._rename(one)
        return json.dumps(answer, ensure_ascii=False).encode()

    def _rename(self, answer: Any) -> None:
        if not isinstance(answer, dict):
            return
        for owner in (answer, answer.get("response"), answer.get("message")):
            if isinstance(owner, dict) and isinstance(owner.get("model"), str):
                owner["model"] = self.model
