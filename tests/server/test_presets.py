"""Presets: their fields, their file, their routes, and the models that they make; no engine."""

import asyncio
import hashlib
import json
import os

import pytest
import yaml
from upstream_fake import Fake

from test_upstream import Here
from trimtab.errors import InvalidGuidance, InvalidRequest, StartError
from trimtab.params import GuidanceParams
from trimtab_models import outputs
from trimtab_server import settings
from trimtab_server.presets.naming import NamedAnswer
from trimtab_server.presets.places import PLACES, READING
from trimtab_server.presets.preset import Preset, sent
from trimtab_server.presets.settings import parse_preset

pytestmark = pytest.mark.scorecard(letter="S")

ADMIN, USER, OTHER = "an-admin-key", "a-users-key", "another-users-key"
WARM = {"guidance": {"scorers": {"good": 1.0}, "beta": 4.0}}
BOUNDED = {**WARM, "bounds": {"beta": [0, 8], "scorers": [-2, 2], "tail": "any"}}


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def combined(preset, /, **requested):
    return sent(Preset.parse(preset).combine("warm", GuidanceParams.parse(requested)))


def test_a_request_overrides_field_by_field():
    warm = WARM["guidance"]
    assert combined(WARM) == warm
    assert combined(WARM, beta=2) == {**warm, "beta": 2.0}
    assert combined(WARM, scorers={"emoji": -1}, k=4) == {
        **warm,
        "scorers": {"emoji": -1.0},
        "k": 4,
    }
    assert combined(WARM, scorers=None, kl_budget=None) == warm  # null is not sent
    assert combined(WARM, paper="vas")["k"] == 20
    paper = {"guidance": {"paper": "pargs"}}
    assert combined(paper, k=7).items() >= {"k": 7, "mass": 1.0, "tail": "truncate"}.items()


@pytest.mark.parametrize(
    ("preset", "requested", "gone"),
    [
        ({"beta": 4}, {"kl_budget": 1}, "beta"),
        ({"floors": {"good": 0.5}, "beta": 2}, {"kl_budget": 1}, "beta"),
        ({"kl_budget": 2}, {"beta": 1}, "kl_budget"),
        ({"scorers": {"a": 1}, "caution": {"a": 1}}, {"scorers": {"b": 1}}, "caution"),
    ],
)
def test_a_strength_of_the_request_replaces_one_that_it_excludes(preset, requested, gone):
    answer = combined({"guidance": preset}, **requested)
    assert gone not in answer
    assert answer.items() >= requested.items()


def test_bounds_go_with_a_budget():
    assert combined({"guidance": {"kl_budget": 2}}, ceilings={"good": 1})["kl_budget"] == 2
    own = {"guidance": {"utility": {"good": "mean"}}, "bounds": {"ceilings": [0, 1]}}
    assert combined(own, ceilings={"good": 1})["utility"] == {"good": "mean"}
    for fields in ({"ceilings": {"good": 2}}, {"utility": {"good": "mean"}}):
        with pytest.raises(InvalidGuidance, match="preset"):
            combined(own, **fields)


def test_a_contradiction_is_refused():
    with pytest.raises(InvalidGuidance, match="number as k"):
        combined({"guidance": {"kl_budget": 2}}, k="all")


@pytest.mark.parametrize(
    ("requested", "field", "text"),
    [
        ({"beta": 8.1}, "beta", "beta must be from 0 to 8 with preset 'warm'"),
        ({"beta": -0.1}, "beta", "from 0 to 8"),
        ({"scorers": {"good": 1, "emoji": -3}}, "scorers", "scorers must be from -2 to 2"),
        ({"kl_budget": 1}, "kl_budget", "does not let a request set kl_budget"),
        ({"k": 4}, "k", "Fields that a request may set: beta, scorers, tail."),
        ({"paper": "vas"}, "k", "does not let a request set k"),
        ({"on_error": "unguided"}, "on_error", "does not let"),
    ],
)
def test_out_of_bounds_is_refused_with_the_field_and_the_range(requested, field, text):
    with pytest.raises(InvalidGuidance, match=text) as refused:
        combined(BOUNDED, **requested)
    assert refused.value.param == field


def test_within_bounds():
    for requested in ({"beta": 0}, {"beta": 8}, {"scorers": {"a": -2, "b": 2}}, {"tail": "mean"}):
        assert combined(BOUNDED, **requested, trace=True).items() >= requested.items()
    with pytest.raises(InvalidGuidance, match="set: none"):
        combined({**WARM, "bounds": {}}, beta=1)
    with pytest.raises(InvalidGuidance, match="k must be from 1 to 8"):
        combined({**WARM, "bounds": {"k": [1, 8]}}, k="all")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"guidance": None},
        {"guidance": {"beta": 1000}},
        {"guidance": {}, "secret": 1},
        {"guidance": {"secret": 1}},
        {"guidance": {}, "bounds": {"secret": [0, 1]}},
        {"guidance": {}, "bounds": {"trace": "any"}},
        {"guidance": {}, "bounds": {"tail": [0, 1]}},
        {"guidance": {}, "bounds": {"beta": [2, 1]}},
        {"guidance": {}, "bounds": {"beta": [1]}},
        {"guidance": {}, "bounds": {"beta": [0, float("nan")]}},
        {"guidance": {}, "bounds": {"beta": "secret"}},
        {"guidance": {}, "key": ""},
        {"guidance": {}, "key": 5},
        {"guidance": {}, "key_sha256": "secret"},
        {"guidance": {}, "key": "secret", "key_sha256": "0" * 64},
        [],
        "secret",
    ],
    ids=repr,
)
def test_a_preset_that_is_none_is_refused(fields):
    with pytest.raises(
        (InvalidRequest, InvalidGuidance), match=r"Invalid (preset|guidance)"
    ) as refused:
        Preset.parse(fields)
    assert "secret" not in refused.value.message


def test_a_key_is_kept_as_its_digest():
    preset = Preset.parse({**WARM, "key": USER})
    assert preset.key_sha256 == hashlib.sha256(USER.encode()).hexdigest()
    assert USER not in repr(preset)
    assert Preset.parse(preset.stored()) == preset


def test_the_short_form():
    assert parse_preset("warm=good:-0.5,emoji,beta=4,tail=truncate,trace=true,k=all") == (
        "warm",
        {
            "guidance": {
                "scorers": {"good": -0.5, "emoji": 1.0},
                "beta": 4,
                "tail": "truncate",
                "trace": True,
                "k": "all",
            }
        },
    )
    assert parse_preset("warm=" + json.dumps(BOUNDED)) == ("warm", BOUNDED)
    for wrong in ("warm", "warm=", "warm=good:much", "warm=beta=1,beta=2", "warm=a,a:1", "w={"):
        with pytest.raises(ValueError, match="preset"):
            parse_preset(wrong)


OPTIONS = {
    "upstream": "http://upstream/v1",
    "upstream_model": "m",
    "scorer": ["good=upstream_fake:likes_good,family=function,reads=text"],
}


def test_settings_by_line_environment_and_yaml(monkeypatch, tmp_path):
    expected = Preset.parse(WARM)
    short = "warm=good:1,beta=4"
    config = tmp_path / "trimtab.yaml"
    assert settings.load({**OPTIONS, "preset": [short]}).preset == {"warm": expected}
    for value in (short, {"guidance": {"scorers": {"good": 1}, "beta": 4}}):
        config.write_text(yaml.safe_dump({"preset": {"warm": value}}))
        with pytest.raises(StartError):
            settings.load({**OPTIONS, "preset": ["warm=beta=1000"]}, config)
    config.write_text(yaml.safe_dump({"preset": {"warm": "good:1,beta=4"}}))
    assert settings.load(OPTIONS, config).preset == {"warm": expected}
    config.write_text(yaml.safe_dump({"preset": {"warm": WARM}}))
    assert settings.load(OPTIONS, config).preset == {"warm": expected}
    for text in (f"{short} cold=beta=0", json.dumps({"warm": WARM, "cold": "beta=0"})):
        monkeypatch.setenv("TRIMTAB_PRESET", text)
        assert set(settings.load(OPTIONS).preset) == {"warm", "cold"}
    monkeypatch.delenv("TRIMTAB_PRESET")
    for wrong in ([short, short], ["base=beta=1"], ["Bad Name=beta=1"], ["warm=secret=1"]):
        with pytest.raises(StartError, match="preset") as refused:
            settings.load({**OPTIONS, "preset": wrong})
        assert "secret" not in refused.value.message


def here(fake=None, **options):
    """An application over the fake, with keys; its client holds a user's."""
    keys = {"api_key": [USER, OTHER], "admin_key": ADMIN}
    made = Here(fake or Fake(), **{**keys, **options})
    made.http.headers.update(bearer(USER))
    return made


@pytest.fixture
def file(tmp_path):
    return tmp_path / "presets.yaml"


class Admin:
    """The routes of presets, by the admin key."""

    def __init__(self, served):
        self.http = served.http

    async def __call__(self, method, name="", **fields):
        path = f"/v1/presets/{name}" if name else "/v1/presets"
        body = {"json": fields} if fields else {}
        return await self.http.request(method, path, headers=bearer(ADMIN), **body)


def greedy(**fields):
    return {"prompt": "Say it:", "max_tokens": 12, "temperature": 0, **fields}


async def test_a_preset_is_a_model():
    made = here(preset=["warm=good:1,beta=4,k=32,tail=truncate"])
    listed = (await made.http.get("/v1/models")).json()["data"]
    assert [one["id"] for one in listed] == ["m", "m@warm"]
    one = await made.http.get("/v1/models/m@warm")
    assert one.json() == {**listed[0], "id": "m@warm", "parent": "m"}
    assert (await made.http.get("/v1/models/m")).json() == listed[0]
    assert (await made.http.get("/v1/models/m@cold")).status_code == 404
    guidance = {"scorers": {"good": 1.0}, "beta": 4, "k": 32, "tail": "truncate"}
    for path, extra in (("/generate", guidance), ("/v1/completions", {"guidance": guidance})):
        by_hand = (await made.post(path, **greedy(**extra))).json()
        by_name = (await made.post(path, **greedy(model="m@warm"))).json()
        assert by_name["model"] == "m@warm"
        assert by_hand["model"] == "m"
        assert by_name["choices"] == by_hand["choices"]
        assert by_name["choices"][0]["guidance"]["kl"] > 0
        events = await made.stream(path, **greedy(model="m@warm"))
        assert {event["model"] for event in events} == {"m@warm"}
        text = "".join(c["text"] for event in events for c in event["choices"])
        assert text == by_hand["choices"][0]["text"]
    base = (await made.post("/v1/completions", **greedy(model="m"))).json()
    assert base["choices"][0].get("guidance") is None


async def test_an_unknown_preset_is_an_unknown_model():
    made = here(preset=["warm=good:1"])
    for path in ("/generate", "/v1/completions"):
        for model in ("m@cold", "m@", "m@Bad Name", "other@cold"):
            answer = await made.post(path, **greedy(model=model))
            assert answer.status_code == 404, (path, model)
            assert answer.json()["error"]["param"] == "model"
        assert "cold" not in answer.text
    assert (await made.post("/v1/completions", **greedy(model="other@warm"))).status_code == 404


async def test_a_request_overrides_a_preset_within_bounds():
    made = here(preset=[f"warm={json.dumps(BOUNDED)}"])
    answer = await made.post(**greedy(model="m@warm", beta=9))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "beta"
    assert "from 0 to 8" in answer.json()["error"]["message"]
    over = {"guidance": {"beta": 9}}
    assert (await made.post("/v1/completions", **greedy(model="m@warm", **over))).status_code == 400
    zero = (await made.post(**greedy(model="m@warm", beta=0))).json()
    assert zero["choices"][0]["guidance"]["kl"] == 0
    traced = (await made.post(**greedy(model="m@warm", trace=True))).json()
    assert traced["choices"][0]["guidance"]["trace"]


async def test_the_default_preset_steers_what_asks_for_nothing():
    preset = {"preset": ["warm=good:1,beta=4"], "default_preset": "warm"}
    made = here(**preset, default_scorer=["good=1", "emoji=1"])
    listed = (await made.http.get("/v1/models")).json()["data"]
    assert [one["id"] for one in listed] == ["m", "m@warm", "m@base"]

    async def record(path, **fields):
        answer = (await made.post(path, **greedy(**fields))).json()
        return answer["choices"][0].get("guidance")

    for path in ("/generate", "/v1/completions"):
        steered = await record(path, model="m")
        assert steered["kl"] > 0
        assert steered == await record(path) == await record(path, model="m@warm")
    assert (await record("/generate", model="m@base"))["kl"] == 0
    assert await record("/v1/completions", model="m@base") is None
    assert (await made.post("/v1/completions", **greedy(model="m@base"))).json()[
        "model"
    ] == "m@base"
    assert (await record("/v1/completions", guidance={"beta": 0}))["kl"] == 0
    own = await record("/v1/completions", guidance={"beta": 1})
    assert set(own["scores"]) == {"good", "emoji"}  # the server's default scorers


async def test_a_preset_that_is_bound_to_a_key():
    warm = {**BOUNDED, "key": USER}
    made = here(preset=[f"warm={json.dumps(warm)}"])
    for path in ("/generate", "/v1/completions"):
        steered = (await made.post(path, **greedy())).json()["choices"][0]["guidance"]
        assert set(steered["scores"]) == {"good"}
        assert (await made.post(path, **greedy(model="m@warm"))).json()["model"] == "m@warm"
    over = await made.post("/v1/completions", **greedy(guidance={"beta": 9}))
    assert over.status_code == 400
    base = await made.post("/v1/completions", **greedy(model="m@base"))
    assert base.json()["choices"][0].get("guidance") is None

    async def models(key):
        data = (await made.http.get("/v1/models", headers=bearer(key))).json()["data"]
        return [one["id"] for one in data]

    assert await models(USER) == ["m", "m@warm", "m@base"]
    assert await models(ADMIN) == ["m", "m@warm"]
    assert await models(OTHER) == ["m"]
    for key, status in ((OTHER, 404), (ADMIN, 200)):
        for model, expected in (("m@warm", status), ("m", 200), ("m@cold", 404)):
            answer = await made.http.post(
                "/v1/completions", json=greedy(model=model), headers=bearer(key)
            )
            assert answer.status_code == expected, (key, model)
            if expected == 200:
                assert (answer.json()["choices"][0].get("guidance") is None) == (model == "m")
    for hidden, absent in zip(
        [await made.http.get(f"/v1/models/m@{n}", headers=bearer(OTHER)) for n in ("warm", "cold")],
        [(await made.http.get("/v1/models/m@cold"))] * 2,
        strict=True,
    ):
        assert (hidden.status_code, hidden.json()) == (404, absent.json())
    by_header = {"x-api-key": USER, "Authorization": f"Bearer {USER}"}
    answer = await made.http.post("/v1/completions", json=greedy(), headers=by_header)
    assert answer.json()["choices"][0]["guidance"]["steps"] > 0


async def test_the_routes_make_show_and_delete(file):
    made = here(presets=file, preset=["fixed=good:1"])
    admin = Admin(made)
    put = await admin("PUT", "warm", **BOUNDED, key=OTHER)
    assert put.status_code == 200, put.text
    expected = {
        "id": "warm",
        "object": "preset",
        "model": "m@warm",
        "guidance": WARM["guidance"],
        "bounds": BOUNDED["bounds"],
        "has_key": True,
        "default": False,
        "source": "file",
    }
    assert put.json() == expected
    assert (await admin("GET", "warm")).json() == expected
    listed = (await admin("GET")).json()["data"]
    assert [(one["id"], one["source"]) for one in listed] == [
        ("fixed", "settings"),
        ("warm", "file"),
    ]
    saved = file.read_text()
    assert OTHER not in saved + put.text
    assert hashlib.sha256(OTHER.encode()).hexdigest() in saved
    again = here(presets=file, preset=["fixed=good:1"])  # a restart
    assert (await Admin(again)("GET", "warm")).json() == expected
    assert (await admin("PUT", "warm", **WARM)).json()["has_key"] is False
    assert (await made.post(**greedy(model="m@warm"))).status_code == 200
    assert (await admin("DELETE", "warm")).json() == {
        "id": "warm",
        "object": "preset",
        "deleted": True,
    }
    assert (await made.post(**greedy(model="m@warm"))).status_code == 404
    assert yaml.safe_load(file.read_text()) == {}


async def test_the_routes_refuse(file):
    file.write_text("usual: {guidance: {scorers: {good: 1}}}\n")
    with pytest.raises(StartError, match="default_preset"):
        here(presets=file, default_preset="secret")
    made = here(presets=file, preset=["fixed=good:1"], default_preset="usual")
    admin = Admin(made)
    before = file.read_text()
    for status, method, name, fields in (
        (404, "GET", "cold", {}),
        (404, "DELETE", "cold", {}),
        (409, "DELETE", "fixed", {}),
        (409, "DELETE", "usual", {}),
        (409, "PUT", "fixed", WARM),
        (409, "PUT", "usual", {**WARM, "key": USER}),
        (400, "PUT", "base", WARM),
        (400, "PUT", "Bad%20Name", WARM),
        (400, "PUT", "cold", {"guidance": {"beta": 1000}}),
        (400, "PUT", "cold", {"guidance": {"scorers": {"nobody": 1}}}),
        (400, "PUT", "cold", {"guidance": {"floors": {"good": 1}}}),
        (400, "PUT", "cold", {"guidance": {"ceilings": {"good": 1}}}),
        (400, "PUT", "cold", {"guidance": {"utility": {"good": {"target": 1}}}}),
        (400, "PUT", "cold", {**WARM, "key": "nobodys-key"}),
        (400, "PUT", "cold", {**WARM, "key": ADMIN}),
        (415, "PUT", "cold", {}),
    ):
        answer = await admin(method, name, **fields)
        assert answer.status_code == status, (method, name, fields, answer.text)
        assert not {"nobodys-key", ADMIN, "Bad"} & set(answer.text.replace("'", " ").split())
    assert (await admin("PUT", "cold", **WARM, key=USER)).status_code == 200
    assert (await admin("PUT", "colder", **WARM, key=USER)).status_code == 409  # one to a key
    assert (await admin("DELETE", "cold")).status_code == 200
    assert yaml.safe_load(file.read_text()).keys() == yaml.safe_load(before).keys()
    for key, status in ((USER, 403), ("wrong", 401)):
        for method, path in (("GET", ""), ("GET", "/usual"), ("PUT", "/x"), ("DELETE", "/usual")):
            answer = await made.http.request(
                method, f"/v1/presets{path}", headers=bearer(key), json=WARM
            )
            assert answer.status_code == status, (method, path)


async def test_without_a_file_nothing_changes():
    admin = Admin(here(preset=["warm=good:1"]))
    for method in ("PUT", "DELETE"):
        answer = await admin(method, "cold", **WARM)
        assert answer.status_code == 403
        assert "--presets FILE" in answer.json()["error"]["message"]
    assert (await admin("GET", "warm")).status_code == 200


async def test_a_change_that_cannot_be_saved_is_none(file, monkeypatch):
    admin = Admin(here(presets=file))
    assert (await admin("PUT", "warm", **WARM)).status_code == 200
    saved = file.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for change in (admin("PUT", "cold", **WARM), admin("DELETE", "warm")):
            answer = await change
            assert answer.status_code == 500
            assert "No space" in answer.json()["error"]["message"]
            assert str(file) not in answer.text
    assert [one["id"] for one in (await admin("GET")).json()["data"]] == ["warm"]
    assert file.read_bytes() == saved
    assert [path.name for path in file.parent.iterdir()] == [file.name]


async def test_changes_at_once_are_all_saved(file):
    admin = Admin(here(presets=file))
    names = [f"p{number}" for number in range(12)]
    answers = await asyncio.gather(*(admin("PUT", name, **WARM) for name in names))
    assert {answer.status_code for answer in answers} == {200}
    assert set(yaml.safe_load(file.read_text())) == set(names)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("warm: [", "not valid YAML"),
        ("- 1", "by name"),
        ("1: {guidance: {}}", "by name"),
        ("warm: 5", "Invalid preset"),
        ("warm: {guidance: {beta: strong}}", "beta"),
        ("base: {guidance: {}}", "reserved"),
        ("fixed: {guidance: {}}", "both"),
        ("warm: {guidance: {scorers: {nobody: 1}}}", "cannot steer"),
        ("warm: {guidance: {floors: {good: 1}}}", "cannot steer"),
        ("warm: {guidance: {}, key: nobodys-key}", "not one of the server's API keys"),
    ],
)
def test_a_file_that_does_not_serve_stops_the_start(file, content, why):
    file.write_text(content)
    with pytest.raises(StartError, match=why) as refused:
        here(presets=file, preset=["fixed=good:1"])
    assert "nobodys-key" not in refused.value.message


def test_the_place_of_the_file_is_checked_at_start(file):
    with pytest.raises(StartError, match="no directory"):
        here(presets=file.parent / "absent" / "presets.yaml")
    with pytest.raises(StartError, match="cannot be read"):
        here(presets=file, admin_key=None)
    here(presets=file)
    for wrong in (["warm=nobody:1"], [f"warm={json.dumps({**WARM, 'key': 'x'})}"]):
        with pytest.raises(StartError, match="preset 'warm'"):
            here(preset=wrong)
    bound = f"warm={json.dumps({**WARM, 'key': USER})}"
    with pytest.raises(StartError, match="everybody"):
        here(preset=[bound], default_preset="warm")


async def test_scorers_that_come_and_go(file, tmp_path):
    """A preset may wait for a scorer to be loaded; one that is named is not unloaded."""
    file.write_text("warm: {guidance: {scorers: {later: 1}}}\n")
    made = here(presets=file, scorer_dir=tmp_path)
    refused = await made.post(**greedy(model="m@warm"))
    assert refused.status_code == 400
    assert "'later' is not loaded" in refused.json()["error"]["message"]
    own = await made.post(**greedy(model="m@warm", scorers={"good": 1}))
    assert own.status_code == 200
    assert (await Admin(made)("PUT", "cold", guidance={"scorers": {"good": 1}})).status_code == 200
    path = "/v1/scorers/good"
    kept = await made.http.delete(path, headers=bearer(ADMIN))
    assert kept.status_code == 409
    assert "preset 'cold'" in kept.json()["error"]["message"]
    assert (await Admin(made)("DELETE", "cold")).status_code == 200
    assert (await made.http.delete(path, headers=bearer(ADMIN))).status_code == 200


@pytest.mark.parametrize("path", PLACES)
def test_each_place_is_read_and_written_alike(path):
    place = PLACES[path]
    tokens = path == "/inference/v1/generate"
    assert place.is_free({"prompt": "x", "sampling_params": {"n": 1}})
    put = place.put({"prompt": "x", "sampling_params": {"n": 1}}, {"beta": 2.0})
    assert not place.is_free(put)
    assert place.requested(put) == {"beta": 2.0}
    assert put["sampling_params"] == {"n": 1}
    if path == "/generate":
        assert put["beta"] == 2.0
        assert not place.is_free({"search": {}})
        assert place.unsteered({}) == {"beta": 0}
        return
    keys = {"trimtab_beta": 3, "trimtab_record": "mine", "other": 1}
    flat = {"sampling_params": {"extra_args": keys}} if tokens else {"vllm_xargs": keys}
    assert place.requested(flat) == {"beta": 3.0}
    assert not place.is_free(flat)
    assert place.is_twofold({**flat, "guidance": {}})
    put = place.put(flat, {"beta": 2.0})
    left = put["sampling_params"]["extra_args"] if tokens else put["vllm_xargs"]
    assert left == {"trimtab_record": "mine", "other": 1}
    assert put["guidance"] == {"beta": 2.0}
    assert keys["trimtab_beta"] == 3  # the client's body is untouched
    assert place.unsteered({}) == {}


def test_no_route_both_generates_and_reads():
    assert not READING & set(PLACES)


STREAM = (
    b'data: {"model": "m", "choices": [{"delta": {"content": "say \\"model\\": \\"m\\""}}]}\n\n'
    b'event: message_start\ndata: {"type": "x", "message": {"model": "m"}}\n\n'
    b'data: {"response": {"model": "m", "metadata": {"model": "m"}}}\n\n'
    b'data: {"model": null}\n\n: a comment\n\ndata: [DONE]\n\n'
)


async def through(kind, *parts, status=200):
    """What is sent of an answer that comes in parts."""
    sent_messages = []

    async def send(message):
        sent_messages.append(message)

    named = NamedAnswer(send, "m@warm")
    headers = [(b"content-type", kind), (b"content-length", b"7")]
    await named.send({"type": "http.response.start", "status": status, "headers": headers})
    for number, part in enumerate(parts):
        more = number < len(parts) - 1
        await named.send({"type": "http.response.body", "body": part, "more_body": more})
    headers = dict(sent_messages[0]["headers"])
    return headers, b"".join(message.get("body", b"") for message in sent_messages[1:])


async def test_events_are_named_however_they_are_cut():
    head, whole = await through(b"text/event-stream", STREAM)
    assert whole == STREAM.replace(b'"model": "m", "c', b'"model": "m@warm", "c').replace(
        b'{"model": "m"}}\n', b'{"model": "m@warm"}}\n'
    ).replace(b'{"model": "m", "meta', b'{"model": "m@warm", "meta').replace(
        b'"metadata": {"model": "m@warm"}', b'"metadata": {"model": "m"}'
    )
    for cut in range(len(STREAM)):
        parts = (STREAM[:cut], STREAM[cut:], b"")
        assert (await through(b"text/event-stream", *parts))[1] == whole, cut
    assert head[b"content-length"] == b"7"


async def test_json_is_named_and_measured():
    body = json.dumps([{"model": "m", "text": "\u00e9"}, {"other": 1}]).encode()
    head, named = await through(b"application/json", body[:5], body[5:])
    assert json.loads(named) == [{"model": "m@warm", "text": "\u00e9"}, {"other": 1}]
    assert int(head[b"content-length"]) == len(named)
    for kind, status in ((b"text/plain", 200), (b"application/json", 404)):
        assert (await through(kind, body, status=status))[1] == body


def test_the_part_file_of_a_write_is_private(file, monkeypatch):
    modes = []
    replace = outputs.Path.replace

    def noted(part, target):
        modes.append(part.stat().st_mode & 0o777)
        return replace(part, target)

    monkeypatch.setattr(outputs.Path, "replace", noted)
    asyncio.run(Admin(here(presets=file))("PUT", "warm", **WARM))
    assert modes == [0o600]
