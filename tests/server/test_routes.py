"""Every route of the application: guided and capped, or it refuses guidance; without an engine."""

import json
import logging
import re
import warnings
from pathlib import Path

import pytest

from trimtab.engine import Version
from trimtab.errors import InvalidGuidance
from trimtab_server.settings import Settings

pytestmark = pytest.mark.scorecard(letter="S")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's import warns of its own code
    from vllm import SamplingParams
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.run_batch import BatchRequestInput
    from vllm.tasks import GENERATION_TASKS

    from trimtab.adapters.vllm import GuidanceProcessor
    from trimtab_server import bases
    from trimtab_server.placement import ENVELOPES
    from trimtab_server.vllm import engine
    from trimtab_server.vllm.guided_routes import GUIDED
    from trimtab_server.vllm.middleware import OWN, GuidanceMiddleware
    from trimtab_server.vllm.records import EXCHANGE, Exchange, Recording

DOCS = Path(__file__).parents[2] / "docs" / "requests.md"
REFUSE = {
    # These generate, or score what was generated, and are not guided.
    "/generative_scoring",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/systemone",
    # These do not generate.
    "/abort_requests",
    "/adapters",
    "/collective_rpc",
    "/detokenize",
    "/fault_tolerance/apply",
    "/finish_weight_update",
    "/inference/v1/abort_requests",
    "/init_weight_transfer_engine",
    "/is_scaling_elastic_ep",
    "/is_sleeping",
    "/pause",
    "/ping",
    "/release_kv_cache_memory",
    "/reset_encoder_cache",
    "/reset_mm_cache",
    "/reset_prefix_cache",
    "/resume",
    "/scale_elastic_ep",
    "/shutdown_weight_transfer_engine",
    "/sleep",
    "/start_draft_weight_update",
    "/start_profile",
    "/start_weight_update",
    "/stop_profile",
    "/tokenize",
    "/update_weight_version",
    "/update_weights",
    "/v1/chat/completions/derender",
    "/v1/chat/completions/render",
    "/v1/completions/derender",
    "/v1/completions/render",
    "/v1/load_lora_adapter",
    "/v1/messages/count_tokens",
    "/v1/messages/render",
    "/v1/responses/render",
    "/v1/responses/{response_id}/cancel",
    "/v1/unload_lora_adapter",
    "/wake_up",
    "/weight_checker",
}
SOCKETS = {"/v1/realtime"}
"""What comes over a socket is not read here; the engine refuses `trimtab_*` keys of it."""
DELETED = {"/adapters/{adapter_name}"}


@pytest.fixture(scope="module")
def routes():
    """Every route that vLLM can have for a model that generates, with every switch."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_RUNTIME_LORA_UPDATING"):
            patch.setenv(name, "1")
        settings, flags = bases.fill(Settings(model="demo"))
        args = engine.parse(settings, flags)
        args.enable_fault_tolerance = args.enable_scale_out = args.tokens_only = True
        level = logging.getLogger().level
        app = build_app(args, (*GENERATION_TASKS, "render"), None)
        logging.getLogger().setLevel(level)  # one of vLLM's libraries has changed it
    return app.routes


def unknown(routes):
    """Paths that take a body, or a socket, and that nothing here knows."""
    known = {"POST": {*GUIDED, *OWN, *REFUSE}, "PUT": set(), "PATCH": set(), "DELETE": DELETED}
    missing = set()
    for route in routes:
        methods = getattr(route, "methods", None)
        if methods is None:
            socket = "websocket" in type(route).__name__.lower()
            missing |= {route.path} - SOCKETS if socket else set()
        for method in set(methods or ()) & set(known):
            missing |= {route.path} - known[method]
    return missing


class Recorder:
    """In place of vLLM's routes: keeps what comes this far."""

    def __init__(self):
        self.bodies = []
        self.exchange = None

    async def __call__(self, scope, receive, send):
        self.bodies.append((await receive())["body"])
        self.exchange = EXCHANGE.get()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def post(path, body, kind=b"application/json", **scope):
    """(status, answer, what the route was given) of a request through the middleware."""
    route, sent = Recorder(), []
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def receive():
        return {"type": "http.request", "body": raw, "more_body": False}

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", kind)] if kind else []
    http_scope = {"type": "http", "method": "POST", "path": path, "headers": headers, **scope}
    served = {"mild": Version("mild", 1, "function"), "sharp": Version("sharp", 2, "function")}
    await GuidanceMiddleware(route, served, None)(http_scope, receive, send)
    answer = b"".join(message.get("body", b"") for message in sent)
    forwarded = json.loads(route.bodies[0]) if route.bodies and route.bodies[0] else None
    return sent[0]["status"], answer, forwarded


def body(path, guidance=None, **sampling):
    """A body of a guided route."""
    route, fields = GUIDED[path], {"guidance": guidance} if guidance is not None else {}
    return {**fields, **({route.within: sampling} if route.within else sampling)}


def test_every_route_is_known(routes):
    assert unknown(routes) == set()
    paths = {route.path for route in routes}
    assert paths >= set(GUIDED)
    assert paths >= REFUSE - {"/start_profile", "/stop_profile"}


def test_the_control_a_new_route_is_not(routes):
    class New:
        path, methods = "/v1/new", {"POST"}

    class NewWebSocketRoute:
        path = "/v1/socket"

    assert unknown([*routes, New(), NewWebSocketRoute()]) == {"/v1/new", "/v1/socket"}


@pytest.mark.parametrize("path", sorted({*REFUSE, "/v1/new"}))
async def test_a_route_that_is_not_guided_refuses_guidance(path):
    for fields in (
        {"guidance": {}},
        {"guidance": {"scorers": {"mild": 1}}},
        {"vllm_xargs": {"trimtab_beta": 1}},
        {"sampling_params": {"extra_args": {"trimtab_record": "mine"}}},
        {"trimtab_versions": "mild@1"},
        b'{"gu\\u0069dance": {}}',
    ):
        for kind in (b"application/json", b"application/json; charset=utf-8", b""):
            status, answer, forwarded = await post(path, fields, kind)
            assert (status, forwarded) == (400, None), fields
            assert b"does not go with this route" in answer
    for well in ({"prompt": "x"}, {"guidance": None, "vllm_xargs": {"other": 1}}, b""):
        assert (await post(path, well))[0] == 204


@pytest.mark.parametrize("path", sorted({*REFUSE, *GUIDED}))
async def test_wrapped_guidance_is_not_dropped(path):
    """Some clients send `extra_body` itself; Ollama's wrap their fields in `options`."""
    for wrapping in ENVELOPES:
        status, answer, forwarded = await post(path, {"prompt": "x", wrapping: {"guidance": {}}})
        assert (status, forwarded) == (400, None)
        assert f"guidance is inside {wrapping}".encode() in answer
        well = {"prompt": "x", wrapping: {"guidance": None, "other": 1}}
        assert (await post(path, well))[0] == 204


def test_the_documentation_lists_the_guided_routes():
    rows = [
        line.split("|")[1:3] for line in DOCS.read_text().splitlines() if line.startswith("| `")
    ]
    listed = {
        path
        for paths, guidance in rows
        if "guidance" in guidance or "top-level" in guidance
        for path in re.findall(r"`(/[^`]+)`", paths)
    }
    assert listed == {"/generate", *GUIDED}


async def test_a_form_refuses_guidance():
    path, kind = "/v1/audio/transcriptions", b"multipart/form-data; boundary=x"
    part = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n--x--\r\n'
    for fields in (part % (b"guidance", b"{}"), part % (b"vllm_xargs", b'{"trimtab_k": 2}')):
        assert (await post(path, fields, kind))[0] == 400


@pytest.mark.parametrize("path", GUIDED)
async def test_guidance_goes_where_the_route_reads_it(path):
    route = GUIDED[path]
    guidance = {"scorers": {"mild": 2.0}, "beta": 3}
    status, _, forwarded = await post(path, body(path, guidance, n=2))
    assert status == 204
    assert "guidance" not in forwarded
    sampling = route.sampling(forwarded)
    flat = {"trimtab_scorers": "mild=2.0", "trimtab_beta": 3.0}
    assert sampling[route.flat].items() >= flat.items()
    assert (await post(path, body(path, None, **{route.flat: flat})))[2] is not None
    untouched = body(path, None, n=2)
    assert (await post(path, untouched))[2] == untouched


@pytest.mark.parametrize("path", GUIDED)
async def test_vllm_finds_guidance_where_it_looks(path):
    """Said here anew: in vLLM's `vllm_xargs`, but for the route of token ids."""
    tokens = path == "/inference/v1/generate"
    fields = {"sampling_params": {"n": 2}, "guidance": {"beta": 3}}
    _, _, passed = await post(path, fields)
    assert passed["sampling_params"]["n"] == 2
    place = passed["sampling_params"]["extra_args"] if tokens else passed["vllm_xargs"]
    assert place["trimtab_beta"] == 3.0


@pytest.mark.parametrize("path", GUIDED)
async def test_a_guided_route_is_guarded(path):
    flat = GUIDED[path].flat
    for status, fields in (
        (404, body(path, {"scorers": {"unheard-of": 1}})),
        (400, body(path, {"beta": "1"})),
        (400, body(path, None, **{flat: {"trimtab_beta": 1, "trimtab_record": "mine"}})),
        (400, body(path, None, **{flat: {"trimtab_record": "mine"}})),
        (400, body(path, None, **{flat: {"trimtab_versions": "sharp@2"}})),
        (400, body(path, {}, **{flat: {"trimtab_beta": 1}})),
        (400, {"other": 1, "trimtab_record": "mine"}),
        (400, body(path, {}, use_beam_search=True)),
        (400, {**body(path, {}), "background": True}),
    ):
        refused, answer, forwarded = await post(path, fields)
        assert (refused, forwarded) == (status, None), fields
        assert b'"error"' in answer


@pytest.mark.parametrize("path", GUIDED)
@pytest.mark.parametrize("guidance", [None, {}])
async def test_a_guided_route_is_capped(path, guidance):
    for over in (
        {"n": 9},
        {"n": "2"},
        {"n": 2.0},
        {"n": True},
        {"logprobs": -1},
        {"stop": [""] * 5},
    ):
        assert (await post(path, body(path, guidance, **over)))[0] == 400, over


async def test_keys_that_the_route_does_not_read_are_refused():
    chat, tokens = "/v1/chat/completions", "/inference/v1/generate"
    for path, fields in (
        (chat, {"sampling_params": {"extra_args": {"trimtab_beta": 1}}}),
        (chat, {"extra_args": {"trimtab_beta": 1}}),
        (tokens, {"vllm_xargs": {"trimtab_beta": 1}}),
        (tokens, {"sampling_params": {"vllm_xargs": {"trimtab_beta": 1}}}),
    ):
        status, answer, _ = await post(path, fields)
        assert status == 400
        assert b"keys belong in" in answer


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"image_url": {"url": "data:"}},
        {"type": "input_audio", "input_audio": {}},
        {"type": "tool_result", "content": [{"type": "image", "source": {}}]},
    ],
)
async def test_what_is_not_text_is_not_guided(part):
    turn = [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]
    for path, fields in (
        ("/v1/chat/completions", {"messages": turn}),
        ("/v1/messages", {"messages": turn}),
        ("/v1/chat/completions/batch", {"messages": [turn]}),
        ("/v1/responses", {"input": turn}),
    ):
        assert (await post(path, {**fields, "guidance": {}}))[0] == 400
        assert (await post(path, fields))[0] == 204


@pytest.mark.parametrize(
    ("root", "path", "guided"),
    [
        ("", "/v1/completions", True),
        ("/root", "/root/v1/completions", True),
        ("/v", "/v1/completions", True),
        ("/root", "/rootv1/completions", False),
    ],
)
async def test_the_root_path_is_cut_as_routing_cuts_it(root, path, guided):
    status, _, forwarded = await post(path, {"prompt": "x", "guidance": {}}, root_path=root)
    assert status == (204 if guided else 400)
    assert forwarded is None or "vllm_xargs" in forwarded


def test_the_engine_refuses_guidance_that_no_route_announced():
    """The last line: forms, sockets, and whatever else comes past the middleware."""

    class Engine:
        def generate(self, prompt, params, request_id):
            return "generated"

    class RecordingEngine(Recording, Engine):
        pass

    stock = RecordingEngine()
    for key in ("trimtab_beta", "trimtab_record", "trimtab_versions", "trimtab_prompt"):
        with pytest.raises(InvalidGuidance, match="not guided"):
            stock.generate("x", SamplingParams(extra_args={key: 1}), "id")
    assert stock.generate("x", SamplingParams(extra_args={"other": 1}), "id") == "generated"
    assert stock.generate("x", SamplingParams(), "id") == "generated"
    token = EXCHANGE.set(Exchange())  # the control
    assert stock.generate("x", SamplingParams(extra_args={"other": 1}), "id") == "generated"
    EXCHANGE.reset(token)


def test_vllms_run_batch_takes_flat_keys_and_nothing_else():
    """No code of ours reads its file: this documents what reaches the processor."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "guidance": {"beta": 3}}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions"}

    def extra(**more):
        request = BatchRequestInput.model_validate({**line, "body": {**body, **more}})
        return request.body.to_sampling_params(5, {}).extra_args

    assert not extra()
    assert extra(vllm_xargs={"trimtab_beta": 3}) == {"trimtab_beta": 3}
    params = SamplingParams(extra_args=extra(vllm_xargs={"trimtab_beta": "strong"}))
    with pytest.raises(InvalidGuidance):
        GuidanceProcessor.validate_params(params)
