"""Settings of the caps on what one request may ask for (caps.py)."""

from dataclasses import dataclass

from pydantic import Field
from pydantic_settings import BaseSettings


@dataclass(frozen=True)
class Caps:
    """The caps that a server sets; by default, those of a server with users' keys.

    Without such keys, all users are one: they can be WIDE.
    """

    prompts: int = 16
    """Prompts of a completion, or conversations of a batch."""
    choices: int = 8
    """Answers to each."""


NARROW = Caps()
WIDE = Caps(prompts=1024, choices=128)


class CapSettings(BaseSettings):
    """The part of the settings that makes the caps."""

    max_prompts: int | None = Field(
        None,
        ge=1,
        description="maximum prompts of a completion, or conversations of a batch; default: "
        f"{NARROW.prompts} with `--api-key`, {WIDE.prompts} without",
    )
    max_choices: int | None = Field(
        None,
        ge=1,
        description="maximum `n` of a request, the answers to each prompt; default: "
        f"{NARROW.choices} with `--api-key`, {WIDE.choices} without",
    )

    def caps(self) -> Caps:
        """The caps: wide if there are no users' keys, so that all users are one."""
        keys = getattr(self, "api_key", None)  # a field of the whole settings
        default = NARROW if keys else WIDE
        return Caps(self.max_prompts or default.prompts, self.max_choices or default.choices)
