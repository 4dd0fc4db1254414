"""The scorecard: what a server of this kind must survive."""

import os


def full() -> bool:
    """Whether the long form is requested: SCORECARD=full."""
    return os.environ.get("SCORECARD") == "full"
