"""Logging: fewer messages of vLLM, and nothing of a request. Set up before vLLM is imported.

Libraries may log parts of a request, as arguments of a message or the text of an exception. At the
levels warning and error their records keep only the fixed text, and exceptions only their class and
location. At info and debug everything is shown.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).with_name("logging.json")
"""The same configuration for vLLM's other processes, which read it when they start."""
OPEN_CONFIG = Path(__file__).with_name("logging_open.json")
"""The same at the levels info and debug, in JSON."""
FORMAT_VARIABLE = "TRIMTAB_LOG_FORMAT"
"""The format, for this process and vLLM's other processes."""
LEVEL_VARIABLE = "VLLM_LOGGING_LEVEL"
OURS = ("trimtab", "trimtab_lab", "trimtab_models", "trimtab_server")
"""Our own loggers, whose messages contain nothing of a request."""
PLACEHOLDER = re.compile(r"%(\(\w+\))?[-#0 +]*[\d*]*(\.[\d*]+)?[a-zA-Z]")
PLACES = 6
BEFORE_REQUESTS = "failed to start"
"""Text of vLLM's start-up errors, whose exceptions are shown in full: no request exists yet."""

log = logging.getLogger(__name__)


class Discreet(logging.Filter):
    """Removes from a log record what may be part of a request."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record; it is always logged."""
        if record.name.partition(".")[0] not in OURS:
            text = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
            if record.args:
                record.msg = PLACEHOLDER.sub("…", text)
            else:  # already formatted: the part after a colon may be of a request
                record.msg = re.split(r":\s|\n", text, maxsplit=1)[0]
            record.args = None
        if record.exc_info and BEFORE_REQUESTS not in str(record.msg):
            record.exc_text = _place(record.exc_info[1])
            record.exc_info = None
        return True


class Once(logging.Filter):
    """Logs a message only once, because requests can cause it often; metrics count every case."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the message is new."""
        message = record.getMessage()
        known = message in self.logged
        self.logged.add(message)
        return not known


class Enough(logging.Filter):
    """Passes records from vLLM's log level on."""

    def __init__(self) -> None:
        super().__init__()
        self.least = logging.getLevelName(os.environ.get(LEVEL_VARIABLE, "INFO"))

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record's level is high enough; lines of the access log always are."""
        return record.levelno >= self.least or hasattr(record, "fields")


class Lines(logging.Formatter):
    """A record as one line of text, or as a JSON object with `FORMAT_VARIABLE` json.

    The object has time (UTC), level, logger and message, and the fields of a line of the access
    log; an exception is in `exception`.
    """

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self.json = os.environ.get(FORMAT_VARIABLE) == "json"

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        if not self.json:
            return super().format(record)
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        own = getattr(record, "fields", None)
        fields |= {"message": record.getMessage()} if own is None else own
        if record.exc_text or record.exc_info:
            text = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]
            fields["exception"] = text
        return json.dumps(fields, ensure_ascii=False, default=str)


def _place(error: BaseException | None) -> str:
    """The class of an exception and its innermost stack frames, on one line."""
    frames = [] if error is None else traceback.extract_tb(error.__traceback__)
    places = [f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in frames[-PLACES:]]
    return " ← ".join([type(error).__name__, *reversed(places)])


def configure_logging(level: str = "warning", form: str = "text") -> None:
    """Log from `level` on; at "warning", vLLM logs errors only, because it warns too often.

    form: "text" or "json", see Lines.
    """
    discreet = level in ("warning", "error")
    os.environ[FORMAT_VARIABLE] = form
    os.environ.setdefault(LEVEL_VARIABLE, "ERROR" if discreet else level.upper())
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if discreet:
        if os.environ.get("VLLM_CONFIGURE_LOGGING", "1") != "0":
            os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(CONFIG))
        logging.config.dictConfig(json.loads(CONFIG.read_text()))
        # What C++ code of torch warns of, and what Python's resource tracker says when a process
        # was killed, a user cannot change. Both read their variable when they start.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
        # Most warnings of vLLM and its libraries are about things that users cannot change.
        warnings.simplefilter("ignore")
        sys.unraisablehook = threading.excepthook = _log
    elif form == "json":
        os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(OPEN_CONFIG))
        logging.config.dictConfig(json.loads(OPEN_CONFIG.read_text()))
    else:
        logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s")
    for name in OURS:
        # Set on each, because a library that vLLM imports sets the root logger to vLLM's level.
        logging.getLogger(name).setLevel(level.upper())
    # It logs URLs, and the URL of an upstream may contain a password.
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _log(failure: Any) -> None:
    """Log an exception that no code can catch, from a thread or a finaliser."""
    log.error("an exception was lost", exc_info=failure.exc_value)
