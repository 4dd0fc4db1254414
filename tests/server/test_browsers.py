"""CORS: a page of an allowed origin can ask with a key, and read every refusal."""

import pytest

from covered import application, client
from trimtab_server.settings import Settings

pytestmark = pytest.mark.scorecard(letter="S")

PAGE = "https://page.example"
KEY = {"Authorization": "Bearer key"}
ASKS = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
KEPT = {"api_key": ["key"], "max_body_bytes": 100}


def upstream(**settings):
    from trimtab_server.upstream import build

    chosen = Settings(
        upstream="http://127.0.0.1:9/v1",
        upstream_model="m",
        scorer={"a": {"path": "builtins:len", "family": "function", "reads": "text"}},
        **settings,
    )
    return build(chosen)


def made(kind, *origins):
    if kind == "vllm flag":  # in YAML under `vllm`; on the command line the flag is ours
        return application([f"--allowed-origins={list(origins)}".replace("'", '"')], **KEPT)
    build = application if kind == "vllm" else upstream
    return build(allowed_origins=list(origins), **KEPT)


@pytest.mark.parametrize("kind", ["vllm", "vllm flag", "upstream"])
async def test_a_page_may_ask(kind):
    async with client(made(kind, PAGE)) as http:
        headers = {**ASKS, "Access-Control-Request-Headers": "authorization,x-api-key"}
        allowed = await http.options("/v1/completions", headers=headers)
        assert allowed.status_code == 200
        assert allowed.headers["Access-Control-Allow-Origin"] == PAGE
        assert "POST" in allowed.headers["Access-Control-Allow-Methods"]
        assert "x-api-key" in allowed.headers["Access-Control-Allow-Headers"]
        json = {"Content-Type": "application/json"}
        for code, request in {
            401: {"headers": {}},
            413: {"headers": KEY | json, "content": b"x" * 200},
            400: {"headers": KEY | json, "content": b"{"},
            415: {"headers": KEY, "content": b"{}"},
        }.items():
            sent = {**request, "headers": {**request["headers"], "Origin": PAGE}}
            refused = await http.post("/v1/completions", **sent)
            assert refused.status_code == code
            assert refused.headers.get_list("Access-Control-Allow-Origin") == [PAGE]
            assert "Retry-After" in refused.headers["Access-Control-Expose-Headers"]
        operators = await http.post("/scale_elastic_ep", headers={**KEY, "Origin": PAGE})
        assert operators.status_code == (404 if kind == "upstream" else 403)
        assert operators.headers["Access-Control-Allow-Origin"] == PAGE
        other = await http.options("/v1/models", headers={**ASKS, "Origin": "https://other"})
        assert other.status_code == 400
        assert "Access-Control-Allow-Origin" not in other.headers


@pytest.mark.parametrize("kind", ["vllm", "upstream"])
async def test_no_page_may_ask_by_default(kind):
    async with client(made(kind)) as http:
        answer = await http.options("/v1/completions", headers=ASKS)
        assert answer.status_code == 401
        refused = await http.post("/v1/completions", headers={"Origin": PAGE})
        for reply in (answer, refused):
            assert not [name for name in reply.headers if name.startswith("access-control")]
