"""What the server tells of itself."""

import pytest

pytestmark = pytest.mark.scorecard(letter="S")


def test_scorers(server):
    data = server.http.get("/v1/scorers").json()["data"]
    by_name = {scorer["id"]: scorer for scorer in data}
    assert {"sentiment", "formality", "brevity"} <= set(by_name)
    sentiment = by_name["sentiment"]
    assert sentiment["family"] == "head"
    assert sentiment["deviation"] > 0
    assert sentiment["healthy"]
    assert sentiment["default_weight"] == 1
    assert by_name["nan"]["default_weight"] == 0
    assert by_name["nan"]["prefix_auc"] is None


def test_ready_and_health(server):
    assert server.http.get("/ready").json() == {"status": "ready"}
    assert server.http.get("/health").status_code == 200


def test_metrics_stand_beside_vllms(server):
    server.generate(prompt="The room was", max_tokens=8, beta=2)
    text = server.http.get("/metrics").text
    ours = {
        line.split("{")[0].split()[0] for line in text.splitlines() if line.startswith("trimtab")
    }
    for name in ("guided_choices", "steps", "scored_steps", "scored_tokens"):
        assert f"trimtab_{name}_total" in ours
    assert "trimtab_kl_nats_bucket" in ours
    assert "trimtab_kl_tail_nats_total" in ours
    assert all(":" not in name for name in ours)
    assert "vllm:num_requests_running" in text


def test_metric_series_do_not_grow_with_requests(server):
    def series():
        lines = server.http.get("/metrics").text.splitlines()
        return {line.rsplit(" ", 1)[0] for line in lines if line.startswith("trimtab")}

    server.generate(prompt="The", max_tokens=2)
    before = series()
    for i in range(10):
        server.generate(prompt="The", max_tokens=2, beta=i / 10)
        server.http.post("/generate", json={"prompt": "x", "scorers": {f"name-{i}": 1}})
    assert series() == before


def test_no_series_of_any_kind_grows_with_names(server):
    """Of vLLM's either: methods, paths, models, ids, scorers, tools, keys, all made up."""

    def series():
        lines = server.http.get("/metrics").text.splitlines()
        return {line.rsplit(" ", 1)[0] for line in lines if not line.startswith("#")}

    def ask(name):
        server.http.request(f"{name.upper()}", "/v1/models")
        server.http.request("GET", f"/{name}")
        server.http.request("DELETE", f"/v1/scorers/{name}")
        server.http.get(f"/v1/responses/{name}")
        server.http.get("/v1/models", headers={"X-Request-Id": name})
        server.http.get("/v1/models", headers={"Authorization": f"Bearer {name}"})
        chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        for fields in (
            {"model": name},
            {"request_id": name, "user": name, "cache_salt": name},
            {"guidance": {"scorers": {name: 1}}},
            {"tools": [{"type": "function", "function": {"name": name}}]},
        ):
            server.http.post("/v1/chat/completions", json={**chat, **fields})

    ask("warm")
    before = series()
    for i in range(8):
        ask(f"name{i}")
    assert len(series() - before) <= 2


def test_request_id_is_echoed(server):
    answer = server.http.get("/ready", headers={"X-Request-Id": "abc"})
    assert answer.headers["X-Request-Id"] == "abc"


@pytest.mark.parametrize("wrong", ["", "a" * 129, "a b", "a\tb", "caf\xe9"])
def test_request_ids_are_short_and_plain(server, wrong):
    """1 MB in a header is refused before it is whole (test_connections.py)."""
    answer = server.http.get("/ready", headers=[(b"X-Request-Id", wrong.encode("latin-1"))])
    assert answer.status_code == 400
    assert "X-Request-Id" in answer.json()["error"]["message"]
    fields = {"prompt": "x", "max_tokens": 1, "request_id": wrong}
    for path in ("/v1/completions", "/tokenize"):
        answer = server.http.post(path, json=fields)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "request_id"


@pytest.mark.parametrize("name", ["request_id", "user", "cache_salt", "model"])
def test_an_id_of_a_megabyte_is_refused(server, name):
    answer = server.http.post("/v1/completions", json={"prompt": "x", name: "zebra" * 200_000})
    assert 400 <= answer.status_code < 500
    assert "zebra" not in answer.text


def test_a_request_id_with_a_line_break_is_one_line(server):
    answer = server.http.post("/v1/completions", json={"prompt": "x", "request_id": "a\r\nINFO b"})
    assert answer.status_code == 400
    assert "INFO b" not in server.log.read_text()
