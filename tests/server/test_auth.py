"""Every route but /health needs a key."""

import httpx
import pytest
from conftest import KEY

MOUNTS = ["/metrics", "/metrics/", "/docs", "/openapi.json", "/nowhere", "/"]
WRONG = [
    {},
    {"Authorization": "Bearer wrong"},
    {"Authorization": "Bearer"},
    {"Authorization": KEY},
    {"Authorization": f"Basic {KEY}"},
    {"Authorization": f"Bearer {KEY}x"},
    {"Authorization": f"Bearer {KEY[:-1]}"},
    {"Authorization": "Bearer \u00e9".encode("latin-1")},
]


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
                if variant == "/health":
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


@pytest.mark.parametrize("headers", WRONG)
def test_wrong_keys(anyone, headers):
    answer = anyone.post("/generate", json={"prompt": "x"}, headers=headers)
    assert answer.status_code == 401
    error = answer.json()["error"]
    assert error["type"] == "authentication_error"
    assert KEY not in answer.text


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
