"""What of an answer may be shown already: whole characters, and nothing that may begin a stop."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Shown:
    """The text of one answer, as it grows."""

    stops: Sequence[str]
    text: str = ""
    stopped: bool = False

    def grow(self, whole: str, ended: bool) -> str:
        """What is new to show, now that the answer reads `whole`; `stopped` at a stop string.

        Bytes that are not a whole character yet are decoded as U+FFFD, and wait.
        """
        whole = whole.rstrip("\ufffd")
        begins = len(self.text)
        found = [at for stop in self.stops if (at := whole.find(stop, begins)) >= 0]
        if found:
            self.stopped, until = True, min(found)
        else:
            until = len(whole) - (0 if ended else self._held(whole))
        new = whole[begins:until]
        self.text += new
        return new

    def _held(self, whole: str) -> int:
        """Characters at the end with which a stop string may begin."""
        sizes = [n for stop in self.stops for n in range(1, len(stop)) if whole.endswith(stop[:n])]
        return max(sizes, default=0)
