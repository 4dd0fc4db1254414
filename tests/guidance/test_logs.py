"""Logs at the default level contain nothing of a request, whichever library writes them."""

import logging
import subprocess
import sys

import pytest

from trimtab.logs import Discreet

pytestmark = pytest.mark.scorecard(letter="S")

SECRET = "zebra-crossing"


def failed():
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        return error


@pytest.fixture
def logged():
    """Writes a record of a library, and gives what its handler shows."""
    names = ["vllm.entrypoints.made_up", "trimtab.made_up"]
    lines = []

    class Keeps(logging.Handler):
        def emit(self, record):
            lines.append(self.format(record))

    handler = Keeps()
    for name in names:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).propagate = False

    def write(message, *args, discreet=True, name=names[0], **options):
        handler.filters = [Discreet()] if discreet else []
        logging.getLogger(name).error(message, *args, **options)
        return lines.pop()

    yield write
    for name in names:
        logging.getLogger(name).removeHandler(handler)


CASES = {
    "argument": ("Error with model %s", SECRET),
    "several": ("Request %s failed after %5.1f s with %(x)r", SECRET, 7.0),
    "ids": ("Failed to advance FSM for request %s for tokens %s", "r", [11, 222, 3333]),
    "mapping": ("prompt %(prompt)s of %(n)d", {"prompt": SECRET, "n": 222}),
    "put together": (f"Error in streaming tool calls: {SECRET}",),
    "asyncio": (f"Task exception was never retrieved\nfuture: <Task exception=E('{SECRET}')>",),
    "an exception": (ValueError(SECRET),),
}


@pytest.mark.parametrize("name", CASES)
def test_a_librarys_record_keeps_its_fixed_text_alone(logged, name):
    output = logged(*CASES[name])
    assert SECRET not in output
    assert "222" not in output
    assert "\n" not in output
    if name != "several":  # where the control's text cannot even be formatted
        control = logged(*CASES[name], discreet=False)
        assert SECRET in control or "222" in control
        assert control.startswith(output.partition("…")[0]) or name == "an exception"


def test_an_exception_keeps_its_class_and_place(logged):
    output = logged("Error in %s", SECRET, exc_info=failed())
    assert SECRET not in output
    assert "KeyError" in output
    assert "in failed" in output
    assert SECRET in logged("Error", exc_info=failed(), discreet=False)


def test_our_messages_stay_but_not_an_exceptions_text(logged):
    output = logged("scorer %s failed", "mood", exc_info=failed(), name="trimtab.made_up")
    assert "scorer mood failed" in output
    assert "KeyError" in output
    assert SECRET not in output


def test_why_an_engine_did_not_start_is_logged(logged):
    assert SECRET in logged("EngineCore failed to start.", exc_info=failed())


SCRIPT = """
import logging, multiprocessing, sys, threading
from trimtab.logs import configure_logging

LEVEL, SECRET = sys.argv[1:]

def of_vllm():
    import vllm.logger
    from vllm.config.logging import LoggingConfig
    vllm.logger.configure_logging(LoggingConfig())  # as each process of its own begins
    vllm.logger.init_logger("vllm.made_up").error("spawned %s", SECRET)
    logging.getLogger("elsewhere").warning("spawned too %s", SECRET)

def fails():
    raise ValueError(SECRET)

if __name__ == "__main__":
    configure_logging(LEVEL)
    logging.getLogger("uvicorn.error").error("here %s", SECRET)
    for _ in range(5):  # a request that fails at will must not fill the log
        logging.getLogger("trimtab.guide").error("scorer %s failed", "mood")
    logging.getLogger("httpx").info("https://user:%s@host", SECRET)
    thread = threading.Thread(target=fails)
    thread.start()
    thread.join()
    child = multiprocessing.get_context("spawn").Process(target=of_vllm)
    child.start()
    child.join()
"""


@pytest.mark.slow
@pytest.mark.parametrize("level", ["warning", "error", "debug"])
def test_no_process_or_thread_logs_requests(tmp_path, level):
    """At debug all of it is shown: the control."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script, level, SECRET],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    output = done.stdout + done.stderr
    assert output.count(SECRET) == (4 if level == "debug" else 0), output
    assert output.count("scorer mood failed") == (5 if level == "debug" else 1)
    assert "here " in output
    assert "spawned " in output
    assert "ValueError" in output
