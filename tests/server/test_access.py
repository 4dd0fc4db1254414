"""The access log and JSON logs: one line a request, and nothing of a prompt or a key in it."""

import io
import json
import logging
import os
import sys
import threading
from unittest.mock import patch

import pytest
from conftest import KEY

from covered import client
from test_engines import memory
from trimtab import logs
from trimtab_server import access, app, readiness, settings

pytestmark = pytest.mark.scorecard(letter="S")

HEADERS = {"Authorization": f"Bearer {KEY}"}
MARK = "zebracrossing"


@pytest.fixture
def configured(monkeypatch):
    """Logging as a server configures it, written to a buffer."""
    root = logging.getLogger()
    library = logging.getLogger("vllm")
    before = root.handlers[:], root.level, library.level, library.propagate
    for owner, name in ((sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back at the end

    def configure(level="warning", form="text"):
        root.handlers = []
        for name in (logs.LEVEL_VARIABLE, "VLLM_LOGGING_CONFIG_PATH"):
            os.environ.pop(name, None)
        logs.configure_logging(level, form)
        written = io.StringIO()
        for handler in root.handlers:
            handler.setStream(written)
        return written

    with patch.dict(os.environ):
        yield configure
    root.handlers, root.level, library.level, library.propagate = before
    access.log.setLevel(logging.NOTSET)


@pytest.fixture
async def made(monkeypatch):
    monkeypatch.setattr(app, "Requests", lambda inner, logged: access.Requests(inner, True))
    made = memory()
    await readiness.check_all(made.state.trimtab)
    yield made
    await made.state.trimtab.engine.close()


async def ask(made):
    """Good and bad requests with a mark in all that a client writes but its request id."""
    async with client(made) as http:
        body = {"prompt": f"the {MARK}", "max_tokens": 3, "scorers": {"good": 1}}
        marked = {**HEADERS, "User-Agent": MARK, "Referer": MARK, "X-Marked": MARK}
        answer = await http.post(f"/generate?{MARK}=1", json=body, headers=marked)
        assert answer.status_code == 200
        stream = {**body, "stream": True}
        await http.post("/generate", json=stream, headers={**HEADERS, "X-Request-Id": "mine"})
        await http.post("/generate", json={MARK: 1}, headers=marked)
        await http.get(f"/{MARK}?key={KEY}", headers=marked)
        await http.get("/v1/models", headers={"Authorization": f"Bearer {MARK}"})
        await http.request(MARK.upper(), "/v1/models", headers=HEADERS)
        await http.get("/v1/models", headers={**HEADERS, "X-Request-Id": f"{MARK} {KEY}"})
        await http.request("DELETE", f"/v1/scorers/{MARK}", headers=marked)
    return answer


@pytest.mark.parametrize("level", ["warning", "error", "info", "debug"])
async def test_json_lines_have_nothing_of_a_request(made, configured, level):
    written = configured(level, "json")
    answer = await ask(made)
    assert MARK not in written.getvalue()
    assert MARK.upper() not in written.getvalue()
    assert KEY not in written.getvalue()
    records = [json.loads(line) for line in written.getvalue().splitlines()]
    lines = [record for record in records if record["logger"] == access.log.name]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("POST", "/generate", 200),
        ("POST", "/generate", 200),
        ("POST", "/generate", 400),
        ("GET", "-", 404),
        ("GET", "/v1/models", 401),
        ("-", "/v1/models", 405),
        ("GET", "/v1/models", 400),
        ("DELETE", "/v1/scorers/{name}", 403),
    ]
    assert all(line["seconds"] >= 0 and line["client"] for line in lines)
    assert lines[0]["bytes"] == len(answer.content)
    assert lines[0]["request_id"] == answer.headers["X-Request-Id"]
    assert [lines[1]["request_id"], lines[6]["request_id"]] == ["mine", "-"]


async def test_the_same_as_text(made, configured):
    written = configured()
    await ask(made)
    lines = [line for line in written.getvalue().splitlines() if " POST /generate 200 " in line]
    assert len(lines) == 2
    assert lines[1].startswith("INFO trimtab_server.access: ")
    assert lines[1].endswith(" mine")
    assert MARK not in written.getvalue()
    assert KEY not in written.getvalue()


async def test_what_a_handler_would_show_of_a_careless_line(configured):
    """The control: the buffer has what is logged."""
    written = configured("warning", "json")
    logging.getLogger("trimtab.made_up").warning("a prompt: %s", MARK)
    assert json.loads(written.getvalue())["message"] == f"a prompt: {MARK}"


@pytest.mark.parametrize("form", ["text", "json"])
async def test_the_access_log_is_off_unless_it_is_switched_on(configured, form):
    written = configured("warning", form)
    made = memory()
    async with client(made) as http:
        assert (await http.get("/health")).status_code == 200
    await made.state.trimtab.engine.close()
    assert written.getvalue() == ""
    assert settings.load({"model": "m"}).access_log is False


async def test_every_answer_has_a_request_id(made):
    async with client(made) as http:
        own = await http.get("/health", headers={"X-Request-Id": "abc"})
        assert own.headers.get_list("X-Request-Id") == ["abc"]
        ids = {(await http.get("/v1/models")).headers["X-Request-Id"] for _ in range(3)}
    assert len(ids) == 3


def test_an_exception_is_one_json_line(configured):
    written = configured("warning", "json")
    try:
        raise KeyError(MARK)
    except KeyError as error:
        logging.getLogger("trimtab_server").error("a request failed", exc_info=error)
    [line] = written.getvalue().splitlines()
    record = json.loads(line)
    assert record["level"] == "error"
    assert record["exception"].startswith("KeyError ← test_access.py:")
    assert MARK not in line


@pytest.mark.parametrize(("level", "shown"), [("info", "INFO"), ("debug", "DEBUG")])
def test_libraries_log_from_the_level_on_in_json(configured, level, shown):
    written = configured(level, "json")
    library = logging.getLogger("vllm.made_up")
    for number in (logging.DEBUG, logging.INFO, logging.WARNING):
        library.log(number, "one of %s", "its lines")
    levels = [json.loads(line)["level"] for line in written.getvalue().splitlines()]
    expected = ["debug", "info", "warning"]
    assert levels == expected[expected.index(shown.lower()) :]
