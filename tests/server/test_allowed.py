"""What a user may call is a list; of vLLM's whole application all else needs the admin key."""

import pytest
from fastapi import APIRouter, FastAPI
from starlette.responses import PlainTextResponse
from starlette.routing import Mount

from covered import application, client
from trimtab_server import pages
from trimtab_server.auth import ApiKeys
from trimtab_server.settings import Settings

pytestmark = pytest.mark.scorecard(letter="S")

SWITCHES = ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")
FLAGS = ["--enable-scale-out", "--enable-tokenizer-info-endpoint", "--enable-fault-tolerance"]
FLAGS += ["--profiler-config", '{"profiler": "torch", "torch_profiler_dir": "/tmp/profile"}']

USERS = """
    GET /health  GET /load  GET /metrics  GET /openapi.json
    GET /ping  GET /ready  GET /tokenizer_info  GET /v1/models  GET /v1/responses/x
    GET /v1/scorers  GET /version
    HEAD /openapi.json
    POST /detokenize  POST /generate  POST /generative_scoring  POST /inference/v1/generate
    POST /invocations  POST /ping  POST /tokenize
    POST /v1/chat/completions  POST /v1/chat/completions/batch
    POST /v1/chat/completions/derender  POST /v1/chat/completions/render
    POST /v1/completions  POST /v1/completions/derender  POST /v1/completions/render
    POST /v1/messages  POST /v1/messages/count_tokens  POST /v1/messages/render
    POST /v1/responses  POST /v1/responses/render  POST /v1/responses/x/cancel
    POST /v1/systemone
"""
OPEN = {f"{method} {path}" for path in pages.PATHS for method in ("GET", "HEAD")}
"""Pages, which need no key."""
OPERATORS = """
    DELETE /adapters/x  DELETE /v1/scorers/x  DELETE /v1/scorers/x/versions/x
    DELETE /v1/presets/x  GET /v1/presets  GET /v1/presets/x  PUT /v1/presets/x
    POST /v1/presets/x/fit
    GET /fault_tolerance/status  GET /get_world_size  GET /is_paused  GET /is_sleeping
    GET /kv_event_sources  GET /server_info  GET /weight_info
    POST /abort_requests  POST /adapters  POST /collective_rpc  POST /fault_tolerance/apply
    POST /finish_weight_update  POST /inference/v1/abort_requests
    POST /init_weight_transfer_engine  POST /is_scaling_elastic_ep  POST /pause
    POST /release_kv_cache_memory  POST /reset_encoder_cache  POST /reset_mm_cache
    POST /reset_prefix_cache  POST /resume  POST /scale_elastic_ep
    POST /shutdown_weight_transfer_engine  POST /sleep  POST /start_draft_weight_update
    POST /start_profile  POST /start_weight_update  POST /stop_profile
    POST /update_weight_version  POST /update_weights  POST /v1/load_lora_adapter
    POST /v1/scorers  POST /v1/scorers/x/versions/x  POST /v1/unload_lora_adapter  POST /wake_up
    POST /weight_checker
    ANY /metrics/x
"""


def listed(text):
    return {entry.strip() for entry in text.replace("\n", "  ").split("  ") if entry.strip()}


def routes_of(app):
    """METHOD /path of all that an application routes, a parameter standing as x."""
    for route in app.routes:
        path = "/".join("x" if p.startswith("{") else p for p in route.path.split("/"))
        if isinstance(route, Mount):
            yield f"ANY {path}/x"
        else:
            yield from (f"{method} {path}" for method in route.methods)


async def status(app, request, headers=(), **keys):
    """How a request to `app` is answered; 200 if the keys let it through."""

    async def front(scope, receive, send):
        scope = {**scope, "app": app, "root_path": app.root_path or ""}
        await ApiKeys(PlainTextResponse("let through"), **keys)(scope, receive, send)

    method, path = request.replace("ANY", "PUT").split()
    async with client(front) as http:
        return (await http.request(method, path, headers=dict(headers))).status_code


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(params=["as it comes", "with all switched on"])
def everything(request, monkeypatch):
    switched = request.param == "with all switched on"
    for name in SWITCHES:
        monkeypatch.setenv(name, "1" if switched else "0")
    return switched


async def test_every_route_is_a_users_or_an_operators(everything):
    app = application(FLAGS if everything else ())
    users, operators, routes = listed(USERS), listed(OPERATORS), set(routes_of(app)) - OPEN
    new = routes - users - operators
    assert not new, f"a route is new; decide who may call it: {sorted(new)}"
    if everything:
        assert users | operators == routes, "a route has another name, or is gone"
    for route in users & routes:
        assert await status(app, route, bearer("user"), keys=["user"]) == 200, route
    for route in operators & routes:
        admin = {"keys": ["user"], "admin_key": "adm"}
        assert await status(app, route, bearer("user"), keys=["user"]) == 403, route
        assert await status(app, route, bearer("user"), **admin) == 403, route
        assert await status(app, route, **admin) == 401, route
        assert await status(app, route, bearer("adm"), **admin) == 200, route
        # An open server is open to users, not to operators.
        assert await status(app, route, keys=[]) == 403, route
        assert await status(app, route, keys=[], admin_key="adm") == 401, route


@pytest.fixture
def small():
    """An application with a user's routes, and what a later vLLM may add to them."""
    router = APIRouter()
    router.add_api_route("/v1/models", lambda: 0, methods=["GET"])
    router.add_api_route("/v1/models/{name}/replace", lambda name: name, methods=["POST"])
    router.add_api_route("/v1/models", lambda: 0, methods=["PATCH"])
    router.add_api_route("/sleep", lambda: 0, methods=["POST"])
    router.add_api_websocket_route("/v1/realtime", lambda socket: None)
    app = FastAPI()
    app.include_router(router)
    app.mount("/new", PlainTextResponse("x"))
    return app


async def test_an_unseen_route_is_refused(small):
    """The control of the list: none of these is in it."""
    for route in ("POST /v1/models/x/replace", "PATCH /v1/models", "POST /sleep", "PUT /new/x"):
        assert await status(small, route, bearer("user"), keys=["user"]) == 403, route
        assert await status(small, route, bearer("a"), keys=["u"], admin_key="a") == 200, route


async def test_what_is_nowhere_is_left_to_the_application(small):
    nowhere = ("GET /nowhere", "PUT /v1/models", "OPTIONS /v1/models", "GET //v1/models")
    # A slash too many is no route: the application redirects, and the client asks again.
    for route in (*nowhere, "POST /sleep/", "GET /v1/models/"):
        assert await status(small, route, bearer("user"), keys=["user"]) == 200, route
        assert await status(small, route, bearer("x"), keys=["user"]) == 401, route


async def test_behind_a_root_path(small):
    small.root_path = "/proxy"
    for route, code in (("GET /proxy/v1/models", 200), ("POST /proxy/sleep", 403)):
        assert await status(small, route, bearer("user"), keys=["user"]) == code
    for route, code in (("GET /v1/models", 200), ("POST /sleep", 403)):
        assert await status(small, route, bearer("user"), keys=["user"]) == code
    for route, code in (("GET /proxy/playground", 200), ("GET /proxy/playground/x", 401)):
        assert await status(small, route, keys=["user"]) == code


async def test_no_websocket_is_a_users(small):
    messages = []

    async def send(message):
        messages.append(message)

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [], "app": small}
    await ApiKeys(PlainTextResponse("let through"), keys=[])(scope, None, send)
    assert [(m["type"], m["code"]) for m in messages] == [("websocket.close", 1008)]


async def test_an_upstream_has_routes_of_users_alone():
    from trimtab_server import upstream

    settings = Settings(
        upstream="http://127.0.0.1:9/v1",
        upstream_model="m",
        scorer={"a": {"path": "builtins:len", "family": "function", "reads": "text"}},
    )
    operators = {r for r in listed(OPERATORS) if "/v1/scorers" in r or "/v1/presets" in r}
    assert set(routes_of(upstream.build(settings))) - operators - OPEN <= listed(USERS)
