"""A preset by its model's name on each route of vLLM's application, without an engine."""

import json
from types import SimpleNamespace

import pytest

from test_routes import REFUSE, Recorder
from trimtab.engine import Version
from trimtab_server import bodies
from trimtab_server.presets.middleware import PresetModels
from trimtab_server.presets.places import PLACES, READING
from trimtab_server.presets.preset import Preset
from trimtab_server.presets.store import Presets
from trimtab_server.state import State
from trimtab_server.vllm.guided_routes import GUIDED
from trimtab_server.vllm.middleware import GuidanceMiddleware

pytestmark = pytest.mark.scorecard(letter="S")

SERVED = {"mild": Version("mild", 1, "function"), "sharp": Version("sharp", 2, "function")}
WARM = Preset.parse({"guidance": {"scorers": {"mild": 2.0}, "beta": 3}, "bounds": {"beta": [0, 8]}})


async def post(path, fields, default=None, **scope):
    """(status, answer, what the route was given) of a request through both middleware."""
    route, messages = Recorder(), []
    raw = json.dumps(fields).encode()
    presets = Presets({"warm": WARM}, default=default)
    state = State(SimpleNamespace(model="demo"), SERVED, None, presets=presets)
    app = PresetModels(GuidanceMiddleware(route, state.scorers, None), state)

    async def receive():
        return {"type": "http.request", "body": raw, "more_body": False}

    async def send(message):
        messages.append(message)

    headers = [(b"content-type", b"application/json")]
    http_scope = {"type": "http", "method": "POST", "path": path, "headers": headers, **scope}
    await app({**http_scope, bodies.PARSED: fields}, receive, send)
    answer = b"".join(message.get("body", b"") for message in messages)
    forwarded = json.loads(route.bodies[0]) if route.bodies else None
    return messages[0]["status"], answer, forwarded


def flat(path, forwarded):
    """The guidance that vLLM's route is given."""
    route = GUIDED[path]
    keys = route.sampling(forwarded).get(route.flat) or {}
    return {name.removeprefix("trimtab_"): value for name, value in keys.items()}


def body(path, guidance=None, **sampling):
    within = GUIDED[path].within
    guided = {} if guidance is None else {"guidance": guidance}
    return {**guided, **({within: sampling} if within else sampling)}


def test_every_guided_route_is_a_place_of_presets():
    assert set(PLACES) == {*GUIDED, "/generate"}
    for path, route in GUIDED.items():
        assert (PLACES[path].within, PLACES[path].flat) == (route.within, route.flat)
    assert READING <= REFUSE


@pytest.mark.parametrize("path", GUIDED)
async def test_a_guided_route_is_steered_by_a_presets_name(path):
    named = {"model": "demo@warm"}
    steered = {"scorers": "mild=2.0", "beta": 3.0}
    for fields, expected in (
        (body(path, n=2), steered),
        (body(path, {"beta": 5}, n=2), {**steered, "beta": 5.0}),
        (body(path, None, **{GUIDED[path].flat: {"trimtab_beta": 5}}), {**steered, "beta": 5.0}),
    ):
        status, _, forwarded = await post(path, {**fields, **named})
        assert status == 204
        assert forwarded["model"] == "demo"
        assert flat(path, forwarded).items() >= expected.items()
    untouched = {**body(path, n=2), "model": "demo"}
    assert (await post(path, untouched))[2] == untouched
    assert (await post(path, {**untouched, "model": "demo@base"}))[2] == untouched


@pytest.mark.parametrize("path", GUIDED)
async def test_a_guided_route_refuses_what_does_not_go_with_a_preset(path):
    key = GUIDED[path].flat
    for status, fields in (
        (404, {**body(path), "model": "demo@cold"}),
        (400, {**body(path, {"beta": 9}), "model": "demo@warm"}),
        (400, {**body(path, {"scorers": {"sharp": 1}}), "model": "demo@warm"}),
        (400, {**body(path, None, **{key: {"trimtab_beta": 9}}), "model": "demo@warm"}),
        (400, {**body(path, {}, **{key: {"trimtab_beta": 1}}), "model": "demo@warm"}),
        (400, {**body(path, None, **{key: {"trimtab_record": "x"}}), "model": "demo@warm"}),
        (400, {**body(path, None, use_beam_search=True), "model": "demo@warm"}),
        (400, {**body(path, "much"), "model": "demo@warm"}),
    ):
        refused, answer, forwarded = await post(path, fields)
        assert (refused, forwarded) == (status, None), fields
        assert b'"error"' in answer


@pytest.mark.parametrize("path", GUIDED)
async def test_the_default_preset_steers_a_guided_route(path):
    for fields in (body(path, n=2), {**body(path, n=2), "model": "demo"}):
        _, _, forwarded = await post(path, fields, "warm")
        assert flat(path, forwarded)["scorers"] == "mild=2.0"
    _, _, own = await post(path, body(path, {"scorers": {"sharp": 1}, "beta": 50}), "warm")
    assert flat(path, own).items() >= {"scorers": "sharp=1.0", "beta": 50.0}.items()
    base = {**body(path, n=2), "model": "demo"}
    assert (await post(path, {**base, "model": "demo@base"}, "warm"))[2] == base


@pytest.mark.parametrize("path", sorted(READING))
async def test_a_reading_route_takes_the_name_for_its_model(path):
    for name in ("demo@warm", "demo@base"):
        status, _, forwarded = await post(path, {"model": name, "prompt": "x"}, "warm")
        assert (status, forwarded) == (204, {"model": "demo", "prompt": "x"})
    assert (await post(path, {"model": "demo@cold", "prompt": "x"}))[0] == 404


@pytest.mark.parametrize("path", sorted(REFUSE - READING))
async def test_other_routes_refuse_a_preset(path):
    status, answer, forwarded = await post(path, {"model": "demo@warm", "prompt": "x"})
    assert (status, forwarded) == (400, None)
    assert b"does not go with this route" in answer
    plain = {"model": "demo", "prompt": "x"}
    assert (await post(path, plain, "warm"))[2] == plain


async def test_other_models_and_root_paths():
    """The part before the preset is for vLLM to know: an alias or an adapter."""
    path = "/v1/completions"
    _, _, alias = await post(path, {"model": "org/tuned@v2@warm"})
    assert alias["model"] == "org/tuned@v2"
    assert flat(path, alias)["beta"] == 3.0
    unknown = {"model": "org/tuned@v2"}
    assert (await post(path, unknown))[2] == unknown
    _, _, rooted = await post(f"/root{path}", {"model": "demo@warm"}, root_path="/root")
    assert flat(path, rooted)["beta"] == 3.0
    assert (await post(path, {"model": 5}))[2] == {"model": 5}
    assert (await post(path, {"model": ["@"]}))[2] == {"model": ["@"]}
