"""The holdback buffer: send whole characters, hold back a possible start of a stop string."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Holdback:
    """The sent text of one answer."""

    stops: Sequence[str]
    sent: str = ""
    stopped: bool = False

    def update(self, text: str, ended: bool) -> str:
        """The new text to send when the answer is `text`. Sets `stopped` at a stop string.

        Incomplete characters at the end are decoded as U+FFFD, and held back.
        """
        text = text.rstrip("\ufffd")
        start = len(self.sent)
        positions = [at for stop in self.stops if (at := text.find(stop, start)) >= 0]
        if positions:
            self.stopped, end = True, min(positions)
        else:
            end = len(text) - (0 if ended else self._held_back(text))
        new = text[start:end]
        self.sent += new
        return new

    def _held_back(self, text: str) -> int:
        """Number of characters at the end that may begin a stop string."""
        sizes = [n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
        return max(sizes, default=0)
