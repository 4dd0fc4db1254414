"""The configuration of an upstream."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class UpstreamConfig:
    """Where the upstream is, and how to call it.

    Raises:
        ValueError: the settings contradict each other.
    """

    url: str
    """Of an OpenAI-compatible endpoint, including `/v1`."""
    model: str
    """The model's name there."""
    key: str | None = field(default=None, repr=False)
    """The API key."""
    api: Literal["completions", "chat"] = "completions"
    """The route to call."""
    continuation: Literal["continue_final_message", "prefix", "none"] = "none"
    """How a `chat` upstream continues a partial answer."""
    top: int = 20
    """Number of most likely tokens to request for each step."""
    block: int = 1
    """Tokens to request per call at temperature 0."""
    ends: tuple[str, ...] = ()
    """Texts of end-of-turn tokens, if there is no tokenizer."""
    concurrency: int = 16
    """Maximum concurrent calls."""
    retries: int = 3
    """Further tries of a failed call."""
    timeout: float = 30
    """Maximum seconds of a call."""
    deadline: float = 600
    """Maximum seconds of an answer."""
    length: int | None = None
    """Maximum tokens of prompt and answer; by default the tokenizer's."""
    tokenizer: str | None = None
    """The upstream's tokenizer, a directory or a hub name; tokens are then named by id."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError("the upstream must be a URL such as https://host/v1")
        if self.api == "chat" and self.continuation == "none":
            raise ValueError(
                "steering works token by token, so a chat upstream must continue partial answers; "
                "set the continuation (--upstream-continue), or use the completions route "
                "(--upstream-api completions)"
            )
        if self.api == "chat" and self.tokenizer is not None:
            raise ValueError(
                "a tokenizer needs the completions route (--upstream-api completions); leave it "
                "out, or change the route"
            )
