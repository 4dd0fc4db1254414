"""Every route but /health, /ready and the pages needs a key."""

import asyncio
import hmac
from types import SimpleNamespace

import httpx
import pytest
from conftest import KEY

from covered import client
from test_engines import memory
from trimtab_server import auth, readiness, recheck

pytestmark = pytest.mark.scorecard(letter="S")

MOUNTS = ["/metrics", "/metrics/", "/docs/", "/openapi.json", "/nowhere", "/playground/x"]
WRONG = [
    {},
    {"Authorization": "Bearer wrong"},
    {"Authorization": "Bearer"},
    {"Authorization": KEY},
    {"Authorization": f"Basic {KEY}"},
    {"Authorization": f"Bearer {KEY}x"},
    {"Authorization": f"Bearer {KEY[:-1]}"},
    {"Authorization": "Bearer \u00e9".encode("latin-1")},
    {"Authorization": "Bearer " + "x" * 8000},
    {"x-api-key": "wrong"},
    {"x-api-key": ""},
    [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")],
    [("x-api-key", KEY), ("x-api-key", KEY)],
    [("x-api-key", KEY), ("x-api-key", KEY), ("Authorization", f"Bearer {KEY}")],
    [("x-api-key", "wrong"), ("Authorization", "Bearer wrong")],
    [("x-api-key", "wrong"), ("Authorization", f"Basic {KEY}")],
]
RIGHT = [
    {"Authorization": f"bearer  {KEY}"},
    {"x-api-key": KEY},
    {"X-API-Key": KEY, "Authorization": f"Bearer {KEY}"},
    # Anthropic's clients send both if both are set in the environment, each with its own key.
    {"x-api-key": KEY, "Authorization": "Bearer another-service's"},
    {"x-api-key": "another-service's", "Authorization": f"Bearer {KEY}"},
    {"x-api-key": KEY, "Authorization": "Basic of-a-proxy"},
]
OPERATORS = ["/scale_elastic_ep", "/is_scaling_elastic_ep", "/inference/v1/abort_requests"]


@pytest.fixture(scope="module")
def anyone(server):
    with httpx.Client(base_url=server.url) as client:
        yield client


def test_every_route_is_guarded(server, anyone):
    paths = server.http.get("/openapi.json").json()["paths"]
    assert {"/generate", "/ready", "/v1/chat/completions"} <= set(paths)
    assert {"/v1/scorers", "/v1/scorers/{name}"} <= set(paths)
    checked = 0
    for path in [*paths, *MOUNTS]:
        for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"):
            variants = (path, path.rstrip("/") + "/", "//" + path.lstrip("/"))
            for variant in variants if method == "POST" else variants[:1]:
                if variant in ("/health", "/ready"):
                    continue
                answer = anyone.request(method, server.url + variant)
                assert answer.status_code == 401, (method, variant)
                checked += 1
    assert checked > 100
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_health_is_open(anyone):
    assert anyone.get("/health").status_code == 200
    assert anyone.get("/health?x=/generate").status_code == 200
    assert anyone.get("/health/../generate").status_code == 401


def test_ready_is_open(anyone):
    assert anyone.get("/ready").json() == {"status": "ready"}
    assert anyone.get("/ready/").status_code == 401


async def test_a_stranger_is_not_told_why_a_server_is_not_ready(monkeypatch):
    monkeypatch.setattr(recheck, "SEEN_SECONDS", 0.0)
    made = memory()
    for headers in ({}, {"Authorization": "Bearer wrong"}, RIGHT[0]):
        async with client(made) as http:
            answer = await http.get("/ready", headers=headers)
        assert answer.status_code == 503
        assert ("good" in answer.text) == (headers is RIGHT[0])
    await readiness.check_all(made.state.trimtab)
    async with client(made) as http:
        assert (await http.get("/ready")).json() == {"status": "ready"}
    await made.state.trimtab.engine.close()


async def test_strangers_do_not_keep_the_engine_busy():
    made = memory()
    engine, calls = made.state.trimtab.engine, []
    listed = engine.scorers

    async def counted(seconds):
        calls.append(seconds)
        return await listed(seconds)

    engine.scorers = counted
    await readiness.check_all(made.state.trimtab)
    async with client(made) as http:
        answers = await asyncio.gather(*(http.get("/ready") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        assert len(calls) <= 2  # a second may end in the middle
        await http.get("/ready", headers=RIGHT[0])
        await http.get("/ready", headers=RIGHT[0])
    assert len(calls) >= 3, "the control: with a key, each request asks the engine"
    await engine.close()


@pytest.mark.parametrize("headers", WRONG)
def test_wrong_keys(anyone, headers):
    answer = anyone.post("/generate", json={"prompt": "x"}, headers=headers)
    assert answer.status_code == 401
    error = answer.json()["error"]
    assert error["type"] == "authentication_error"
    assert KEY not in answer.text


@pytest.mark.parametrize("headers", RIGHT)
def test_right_keys(anyone, headers):
    assert anyone.get("/v1/models", headers=headers).status_code == 200


def test_every_key_is_compared_in_constant_time(monkeypatch):
    """None of the comparisons stops early, or is left out because another matched."""
    compared = []

    def compare(sent, known):
        compared.append((sent, known))
        return hmac.compare_digest(sent, known)

    monkeypatch.setattr(auth, "hmac", SimpleNamespace(compare_digest=compare))
    keys = auth.ApiKeys(None, ["first", "second"], "third")
    for sent, holder in (("first", "user"), ("third", "admin"), ("f", None)):
        compared.clear()
        assert keys._holder({"headers": [(b"x-api-key", sent.encode())]}) == holder
        assert len(compared) == 3
        assert {len(digest) for pair in compared for digest in pair} == {32}
    both = [(b"x-api-key", b"first"), (b"authorization", b"Bearer third")]
    for sent in (both, both[::-1]):
        compared.clear()
        assert keys._holder({"headers": sent}) == "user"  # the one that opens fewer routes
        assert len(compared) == 6


@pytest.mark.parametrize("path", OPERATORS)
def test_a_users_key_does_not_operate(server, anyone, path):
    answer = server.http.post(path, json={"new_data_parallel_size": 1})
    assert answer.status_code == 403
    assert "--admin-key" in answer.json()["error"]["message"]
    assert anyone.post(path).status_code == 401


def test_a_key_opens(server):
    assert server.http.get("/v1/models").json()["data"][0]["id"] == "demo"


def test_the_key_is_in_no_log(server):
    assert KEY not in server.log.read_text()


def test_loading_is_off_by_default(server):
    for answer in (
        server.http.post("/v1/scorers", json={"name": "mood", "path": "sentiment"}),
        server.http.delete("/v1/scorers/sentiment"),
    ):
        assert answer.status_code == 403
        assert answer.json()["error"]["type"] == "permission_error"
        assert "--admin-key" in answer.json()["error"]["message"]
