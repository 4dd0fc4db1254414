"""A quiet vLLM, and logs that hold nothing of a request: what is set before vLLM is imported.

What libraries log may be of a request: an argument of a message, the text of an exception. At the
levels warning and error their records keep the fixed text alone, and exceptions their class and
where they came from. At info and debug everything is shown.
"""

import json
import logging
import logging.config
import os
import re
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).with_name("logging.json")
"""The same for vLLM's other processes, which read it at their start."""
OURS = ("trimtab", "trimtab_models", "trimtab_server")
"""Loggers whose messages hold nothing of a request by our own care."""
PLACEHOLDER = re.compile(r"%(\(\w+\))?[-#0 +]*[\d*]*(\.[\d*]+)?[a-zA-Z]")
PLACES = 6
BEFORE_REQUESTS = "failed to start"
"""In vLLM's messages about its start, whose exceptions say what to do."""

logger = logging.getLogger(__name__)


class Discreet(logging.Filter):
    """Takes out of a record what may be of a request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; it is always logged."""
        if record.name.partition(".")[0] not in OURS:
            text = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
            if record.args:
                record.msg = PLACEHOLDER.sub("…", text)
            else:  # it may have been put together before: what follows a colon is the part
                record.msg = re.split(r":\s|\n", text, maxsplit=1)[0]
            record.args = None
        if record.exc_info and BEFORE_REQUESTS not in str(record.msg):
            record.exc_text = _place(record.exc_info[1])
            record.exc_info = None
        return True


class Once(logging.Filter):
    """Lets a message pass once, for what a request can cause at will; metrics count the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is the first."""
        message = record.getMessage()
        known = message in self.logged
        self.logged.add(message)
        return not known


def _place(error: BaseException | None) -> str:
    """The class of an exception and the innermost places that it came through, on one line."""
    frames = [] if error is None else traceback.extract_tb(error.__traceback__)
    places = [f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in frames[-PLACES:]]
    return " ← ".join([type(error).__name__, *reversed(places)])


def quieten(level: str = "warning") -> None:
    """Let vLLM log from `level` on; at "warning", errors alone, for it warns of much."""
    discreet = level in ("warning", "error")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR" if discreet else level.upper())
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if discreet:
        if os.environ.get("VLLM_CONFIGURE_LOGGING", "1") != "0":
            os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(CONFIG))
        logging.config.dictConfig(json.loads(CONFIG.read_text()))
        # vLLM warns of much that nobody can change, and so do the libraries it imports.
        warnings.simplefilter("ignore")
        sys.unraisablehook = threading.excepthook = _log
    else:
        logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s")
    for name in OURS:
        # Said of each, because a library that vLLM imports gives the root vLLM's level.
        logging.getLogger(name).setLevel(level.upper())
    # It logs URLs, and an upstream's may hold a password.
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _log(failure: Any) -> None:
    """An exception that nobody can catch, in a thread or in a finaliser."""
    logger.error("an exception was lost", exc_info=failure.exc_value)
