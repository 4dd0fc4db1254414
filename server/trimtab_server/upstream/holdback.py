"""The holdback buffer: send whole characters, hold back a possible start of a stop string."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Shown:
    """The sent text of one answer."""

    stops: Sequence[str]
    text: str = ""
    stopped: bool = False

    def grow(self, whole: str, ended: bool) -> str:
        """The new text to send when the answer is `whole`. Sets `stopped` at a stop string.

        Incomplete characters at the end are decoded as U+FFFD, and held back.
        """
        whole = whole.rstrip("\ufffd")
        sent = len(self.text)
        positions = [at for stop in self.stops if (at := whole.find(stop, sent)) >= 0]
        if positions:
            self.stopped, until = True, min(positions)
        else:
            until = len(whole) - (0 if ended else self._held_back(whole))
        new = whole[sent:until]
        self.text += new
        return new

    def _held_back(self, whole: str) -> int:
        """Number of characters at the end that may begin a stop string."""
        sizes = [n for stop in self.stops for n in range(1, len(stop)) if whole.endswith(stop[:n])]
        return max(sizes, default=0)
