"""What the server tells of itself."""


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


def test_request_id_is_echoed(server):
    answer = server.http.get("/ready", headers={"X-Request-Id": "abc"})
    assert answer.headers["X-Request-Id"] == "abc"
