"""`trimtab batch`: a file of requests on a running server."""

import json

import httpx
import pytest
from conftest import KEY, free_port

from test_cli import trimtab
from trimtab.errors import TrimtabError
from trimtab_models.data.faults import BrokenRows
from trimtab_server.commands import batch_job as batch

CHAT = {"messages": [{"role": "user", "content": "Describe a cafe."}], "max_tokens": 4}
LINE = {"custom_id": "1", "url": "/v1/chat/completions", "body": CHAT}


def written(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def results(path):
    return {
        one["custom_id"]: one["response"] for one in map(json.loads, path.read_text().splitlines())
    }


@pytest.mark.engine
def test_requests_are_guided_as_on_their_routes(server, tmp_path):
    guidance = {"scorers": {"sentiment": 1.0}, "beta": 3}
    guided = {**CHAT, "guidance": guidance, "temperature": 0}
    lines = [
        {**LINE, "custom_id": "guided", "method": "POST", "body": guided},
        {**LINE, "custom_id": "own", "url": "/generate", "body": {"prompt": "The room", "beta": 0}},
        {**LINE, "custom_id": "unknown", "body": {**CHAT, "guidance": {"scorers": {"nobody": 1}}}},
    ]
    source, out = written(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    done = trimtab("batch", source, "--out", out, "--url", server.url, "--api-key", KEY)
    assert done.returncode == 0, done.stderr
    assert "3 answers" in done.stdout
    assert "1 of them errors" in done.stdout
    answers = results(out)
    alone = server.http.post("/v1/chat/completions", json=guided).json()["choices"][0]
    choice = answers["guided"]["body"]["choices"][0]
    assert choice["message"]["content"] == alone["message"]["content"]
    assert choice["guidance"]["scores"] == alone["guidance"]["scores"]
    assert answers["own"]["status_code"] == 200
    assert answers["unknown"]["status_code"] == 404
    assert answers["unknown"]["body"]["error"]["message"]
    before = out.read_bytes()
    assert trimtab("batch", source, "--out", out, "--url", server.url).returncode == 0
    assert out.read_bytes() == before, "nothing was left to send"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"url": "/generate", "body": {}}, "custom_id"),
        ({**LINE, "url": "https://elsewhere/v1"}, "url"),
        ({**LINE, "url": "//elsewhere/v1"}, "url"),
        ({**LINE, "method": "GET"}, "method"),
        ({**LINE, "body": [1]}, "body"),
        ({**LINE, "bodies": {}}, "bodies"),
        ({**LINE, "body": {**CHAT, "stream": True}}, "stream"),
        (LINE, "is used twice"),
    ],
)
def test_lines_that_are_no_requests_are_named(tmp_path, line, why):
    source = written(tmp_path / "in.jsonl", LINE, line)
    with pytest.raises(BrokenRows, match=r"in\.jsonl, line 2: .*" + why):
        batch.run(source, tmp_path / "out.jsonl", "http://127.0.0.1:1", None, 2)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.slow
def test_no_server_loses_nothing(tmp_path):
    source = written(tmp_path / "in.jsonl", LINE)
    url = f"http://127.0.0.1:{free_port()}"
    done = trimtab("batch", source, "--out", tmp_path / "out.jsonl", "--url", url)
    assert done.returncode == 1
    assert "no server answers" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def transport(monkeypatch, answer):
    client = httpx.AsyncClient

    def make(**options):
        return client(transport=httpx.MockTransport(answer), **options)

    monkeypatch.setattr(batch.httpx, "AsyncClient", make)


def test_a_full_server_is_retried_and_other_errors_are_not(tmp_path, monkeypatch):
    calls = {"1": 0, "2": 0}

    def answer(request):
        name = json.loads(request.content)["name"]
        calls[name] += 1
        if name == "2":
            return httpx.Response(400, json={"error": {"message": "no"}})
        busy = calls[name] < 3
        return httpx.Response(429 if busy else 200, json={}, headers={"Retry-After": "0"})

    transport(monkeypatch, answer)
    lines = [{**LINE, "custom_id": name, "body": {"name": name}} for name in ("1", "2")]
    source, out = written(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    assert batch.run(source, out, "http://server", None, 2) == (2, 1)
    assert calls == {"1": 3, "2": 1}
    assert {name: one["status_code"] for name, one in results(out).items()} == {"1": 200, "2": 400}


def test_what_was_answered_stays_and_the_rest_is_sent_later(tmp_path, monkeypatch):
    sent = []

    def answer(request):
        sent.append(json.loads(request.content)["number"])
        if sent == [0, 1, 2]:
            raise httpx.ConnectError("gone")
        return httpx.Response(200, json={})

    transport(monkeypatch, answer)
    lines = [{**LINE, "custom_id": str(i), "body": {"number": i}} for i in range(5)]
    source, out = written(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    with pytest.raises(TrimtabError, match="same command again to resume"):
        batch.run(source, out, "http://server", None, 1)
    assert set(results(out)) == {"0", "1"}
    assert batch.run(source, out, "http://server", None, 1) == (5, 0)
    assert sent == [0, 1, 2, 2, 3, 4]
    written(source, *lines[:4])
    with pytest.raises(TrimtabError, match="other settings"):
        batch.run(source, out, "http://server", None, 1)


def test_a_server_that_stays_full_ends_the_command(tmp_path, monkeypatch):
    def full(request):
        return httpx.Response(503, headers={"Retry-After": "0"})

    transport(monkeypatch, full)
    source = written(tmp_path / "in.jsonl", LINE)
    with pytest.raises(TrimtabError, match="was busy"):
        batch.run(source, tmp_path / "out.jsonl", "http://server", None, 1)


def test_guidance_is_not_sent_to_a_server_that_would_drop_it(tmp_path, monkeypatch):
    paths = []

    def answer(request):
        paths.append(request.url.path)
        return httpx.Response(404 if request.url.path == "/v1/scorers" else 200, json={})

    transport(monkeypatch, answer)
    out = tmp_path / "out.jsonl"
    source = written(tmp_path / "in.jsonl", {**LINE, "body": {**CHAT, "guidance": {"beta": 2}}})
    with pytest.raises(TrimtabError, match="would ignore it"):
        batch.run(source, out, "http://server", None, 1)
    assert paths == ["/v1/scorers"]
    bare = written(tmp_path / "bare.jsonl", {**LINE, "body": {**CHAT, "guidance": None}})
    assert batch.run(bare, tmp_path / "bare-out.jsonl", "http://server", None, 1) == (1, 0)
    assert paths[1:] == [LINE["url"]]
