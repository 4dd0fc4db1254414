"""Scorers that are loaded and unloaded while serving."""

import concurrent.futures
import json
import pickle
import threading
import time
from functools import partial

import httpx
import psutil
import pytest
from conftest import KEY, start
from httpx_sse import connect_sse
from transformers import AutoTokenizer

import shelves
from trimtab import Guidance
from trimtab.taste import Comparison, learn, pairs_of
from trimtab.taste.comparisons import to_score
from trimtab_models import demo

pytestmark = pytest.mark.scorecard(letter="F")

ADMIN = "an-admin-key-for-tests"
GREEDY = {"temperature": 0, "max_tokens": 48, "ignore_eos": True, "beta": 4}
LONG = {**GREEDY, "max_tokens": 100}
REQUESTS, EVERY = 200, 20
PROMPTS = ["The room was", "I bought a kettle and", "This cable", "We stayed", "The staff"]
WORDS = ("lovely", "clean", "fine", "plain", "dirty", "awful")
CHECKPOINTS = ["sentiment", "negated", "brevity", "formality"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    root = tmp_path_factory.mktemp("shelf")
    shelves.build(root)
    return root


@pytest.fixture(scope="module")
def server(shelf):
    command = ["trimtab_server.cli", "serve", "demo", "--scorer-dir", str(shelf)]
    command += ["--scorer", "mix=sentiment:1+brevity:-1,family=composite"]
    command += ["--scorer", f"negated={shelf / 'negated'}"]
    command += ["--default-scorer", "sentiment=1"]
    env = {"TRIMTAB_API_KEY": KEY, "TRIMTAB_ADMIN_KEY": ADMIN}
    with start(command, ready="/ready", **env) as running:
        yield running


@pytest.fixture(scope="module")
def admin(server):
    headers = {"Authorization": f"Bearer {ADMIN}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=120) as client:
        yield client


@pytest.fixture
def mood(admin):
    """A scorer that was loaded while serving."""
    answer = admin.post("/v1/scorers", json={"name": "mood", "path": "sentiment"})
    assert answer.status_code == 200, answer.text
    yield answer.json()
    admin.delete("/v1/scorers/mood")


@pytest.fixture(scope="module")
def solo(server):
    """What each checkpoint makes of each prompt, one request at a time."""
    return {
        (path, prompt): server.generate(prompt=prompt, scorers={path: 1}, **LONG)["choices"][0][
            "token_ids"
        ]
        for path in CHECKPOINTS
        for prompt in PROMPTS
    }


def test_traffic_while_scorers_come_and_go(server, admin, solo):
    """Of 200 requests in flight, each is token-equal to a solo run of the version it tells."""
    started, loads = threading.Semaphore(0), []
    changed = [threading.Event() for _ in range(REQUESTS // EVERY)]
    # Versions of `mood`, and which checkpoint each of them is.
    checkpoints = {}

    def request(http, i):
        if i >= 2 * EVERY:  # no more than one change behind
            changed[i // EVERY - 2].wait(120)
        started.release()
        fields = {"prompt": PROMPTS[i % len(PROMPTS)], "scorers": {"mood": 1}, **LONG}
        if i % 4 == 3:  # some name a scorer that always is there beside it
            fields["scorers"] = {"mood": 1, "brevity": 0}
        return fields["prompt"], http.post("/generate", json=fields)

    def change():
        for turn in range(REQUESTS // EVERY):
            for _ in range(EVERY):
                started.acquire()
            path = CHECKPOINTS[turn % len(CHECKPOINTS)]
            if turn % 3 == 2:
                loads.append(admin.delete("/v1/scorers/mood"))
            loads.append(admin.post("/v1/scorers", json={"name": "mood", "path": path}))
            checkpoints[loads[-1].json()["version"]] = path
            changed[turn].set()

    loads.append(admin.post("/v1/scorers", json={"name": "mood", "path": "sentiment"}))
    checkpoints[loads[-1].json()["version"]] = "sentiment"
    changing = threading.Thread(target=change)
    changing.start()
    limits = httpx.Limits(max_connections=REQUESTS)
    with (
        httpx.Client(
            base_url=server.url, headers=server.http.headers, timeout=300, limits=limits
        ) as http,
        concurrent.futures.ThreadPoolExecutor(48) as pool,
    ):
        answers = list(pool.map(partial(request, http), range(REQUESTS)))
    changing.join()
    loads.append(admin.delete("/v1/scorers/mood"))
    assert [answer.status_code for answer in loads] == [200] * len(loads)
    assert {answer.status_code for _, answer in answers} <= {200, 404}
    seen, refused, mismatches = set(), 0, 0
    for prompt, answer in answers:
        if answer.status_code == 404:  # it came between an unload and the next load
            refused += 1
            assert answer.json()["error"]["code"] == "scorer_not_found"
            continue
        (choice,) = answer.json()["choices"]
        version = choice["guidance"]["versions"]["mood"]
        seen.add(version)
        mismatches += choice["token_ids"] != solo[checkpoints[version], prompt]
        assert choice["guidance"]["error"] is None
    print(f"{REQUESTS} requests, {refused} refused, {len(seen)} versions of {len(checkpoints)}")
    assert mismatches == 0
    assert len(seen) >= len(checkpoints) - 3
    assert refused < REQUESTS // 2


def test_after_the_traffic_the_server_is_as_before(server, solo):
    def answer(one):
        path, prompt = one
        choice = server.generate(prompt=prompt, scorers={path: 1}, **LONG)["choices"][0]
        return choice["token_ids"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, solo)) == list(solo.values())
    assert server.http.get("/ready").status_code == 200
    assert "Traceback" not in server.log.read_text()


def served(server):
    return {one["id"]: one for one in server.http.get("/v1/scorers").json()["data"]}


def tokens(server, **fields):
    return server.generate(prompt="The room was", **GREEDY, **fields)["choices"][0]["token_ids"]


def test_a_scorer_comes_and_goes(server, admin):
    loaded = admin.post("/v1/scorers", json={"name": "mood", "path": "sentiment"}).json()
    assert loaded == {**loaded, "id": "mood", "object": "scorer", "family": "head", "healthy": True}
    assert served(server)["mood"]["version"] == loaded["version"] > 1
    assert served(server)["mood"]["healthy"]
    assert served(server)["mood"]["default_weight"] == 0
    answer = server.generate(prompt="The room was", scorers={"mood": 1}, **GREEDY)
    (choice,) = answer["choices"]
    assert choice["token_ids"] == tokens(server, scorers={"sentiment": 1})
    assert choice["guidance"]["versions"] == {"mood": loaded["version"]}
    assert choice["guidance"]["scores"].keys() == {"mood"}
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    request = {**chat, "guidance": {"scorers": {"mood": 1}}}
    assert server.http.post("/v1/chat/completions", json=request).status_code == 200
    search = {"method": "best_of_n", "n": 2}
    assert server.generate(prompt="The", scorers={"mood": 1}, beta=0, search=search)["choices"]
    gone = admin.delete("/v1/scorers/mood")
    assert gone.json() == {"id": "mood", "object": "scorer", "deleted": True}
    assert "mood" not in served(server)
    assert admin.delete("/v1/scorers/mood").status_code == 404
    late = server.http.post("/generate", json={"prompt": "x", "scorers": {"mood": 1}})
    assert late.status_code == 404
    assert late.json()["error"]["code"] == "scorer_not_found"
    assert server.http.get("/ready").status_code == 200


def test_requests_in_flight_keep_their_version(server, admin, mood):
    before = tokens(server, scorers={"mood": 1}, n=1)
    request = {
        "prompt": "The room was",
        "scorers": {"mood": 1},
        "stream": True,
        **GREEDY,
        "max_tokens": 400,
    }
    alone = server.generate(**{**request, "stream": False})["choices"][0]["token_ids"]
    with connect_sse(server.http, "POST", "/generate", json=request) as source:
        events = source.iter_sse()
        first = json.loads(next(events).data)
        answer = admin.post("/v1/scorers", json={"name": "mood", "path": "negated"})
        assert answer.status_code == 200, answer.text
        after = tokens(server, scorers={"mood": 1})
        assert admin.delete("/v1/scorers/mood").status_code == 200
        rest = [event.data for event in events]
    assert rest[-1] == "[DONE]"
    pieces = [choice for data in rest[:-1] for choice in json.loads(data)["choices"]]
    streamed = [t for piece in [*first["choices"], *pieces] for t in piece["token_ids"]]
    assert streamed == alone
    assert pieces[-1]["guidance"]["versions"] == {"mood": mood["version"]}
    assert after != before
    assert after == tokens(server, scorers={"sentiment": -1})


BROKEN = {
    "truncated": "cut short",
    "flipped": "SHA-256",
    "wrong-shape": "do not fit",
    "headless": "lacks the weights",
    "wrong-vocabulary": "512",
    "nan": "cannot be served",
    "pickled": "not a safetensors file",
    "no-weights": "no weights in safetensors",
    "unsigned": "no MANIFEST.json",
    "unnamed": "does not name",
    "link": "symbolic link",
    "linked": "symbolic link",
    "adapter": "adapter",
    "absent": "no directory",
    "language": "is a language model",
    "fifo-config": "FIFO",
    "fifo-tokenizer": "FIFO",
    "fifo-model": "FIFO",
    "fifo-notes": "FIFO",
    "huge-config": "300 MiB",
    "huge-manifest": "300 MiB",
    "huge-tokenizer": "300 MiB",
    "crowded": "more than 1000 files",
    "looped": "symbolic link",
    "code": "never run",
}


@pytest.mark.parametrize(("path", "why"), BROKEN.items())
def test_what_is_broken_is_refused(server, admin, shelf, mood, path, why):
    before = tokens(server, scorers={"mood": 1})
    engine = server.engine().pid
    answer = admin.post("/v1/scorers", json={"name": "mood", "path": path})
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["type"] == "scorer_refused"
    assert why in error["message"]
    assert str(shelf) not in answer.text
    assert "/" not in error["message"].replace(f"{path}/", "")
    assert "Traceback" not in answer.text
    assert not (shelf / "canary").exists()
    assert served(server)["mood"]["version"] == mood["version"]
    assert tokens(server, scorers={"mood": 1}) == before
    assert server.engine().pid == engine


def test_a_scorer_is_loaded_as_what_it_says(server, admin):
    for family in ("vocabulary", "log_ratio", "distribution"):
        body = {"name": "mood", "path": "sentiment", "family": family}
        answer = admin.post("/v1/scorers", json=body)
        assert answer.status_code == 422
        assert "was made as a head scorer" in answer.json()["error"]["message"]


def test_the_planted_pickle_would_be_noticed(shelf, tmp_path):
    """The control: who unpickles it, makes the file."""
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(shelves.Planted(canary)))
    assert canary.exists()
    assert (shelf / "pickled" / "model.safetensors").read_bytes()[:1] == b"\x80"


def test_what_does_not_fit_is_refused(server, admin, mood):
    answer = admin.post("/v1/scorers", json={"name": "mood", "path": "huge"})
    assert answer.status_code == 409
    assert answer.json()["error"]["type"] == "insufficient_memory"
    assert served(server)["mood"]["version"] == mood["version"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "mood"},
        {"name": "mood", "path": "../sentiment"},
        {"name": "mood", "path": "/etc"},
        {"name": "mood", "path": "sentiment\n"},
        {"name": "mood", "path": "org/model"},
        {"name": "mood", "path": "https://example.com/x"},
        {"name": "Mood", "path": "sentiment"},
        {"name": "mood@2", "path": "sentiment"},
        {"name": "mood", "path": "sentiment", "family": "function"},
        {"name": "mood", "path": "sentiment", "reference": "../base"},
        {"name": "mood", "path": "sentiment", "trust_remote_code": True},
    ],
)
def test_malformed_bodies(server, admin, body):
    answer = admin.post("/v1/scorers", json=body)
    assert answer.status_code == 400
    assert "mood" not in served(server)


def test_what_others_rest_on_stays(server, admin):
    assert admin.delete("/v1/scorers/sentiment").status_code == 409
    assert admin.delete("/v1/scorers/brevity").status_code == 409
    body = {"name": "brevity", "path": "brevity"}
    assert admin.post("/v1/scorers", json=body).status_code == 409
    assert {"sentiment", "brevity"} <= set(served(server))


def test_keys(server):
    body = {"name": "mood", "path": "sentiment"}
    for headers, status in (
        ({}, 401),
        ({"Authorization": "Bearer nobody"}, 401),
        ({"Authorization": f"Bearer {KEY}"}, 403),
    ):
        with httpx.Client(base_url=server.url, headers=headers) as client:
            loaded = client.post("/v1/scorers", json=body)
            assert loaded.status_code == status
            assert client.post("/v1/scorers", content=b"nonsense").status_code == status
            assert client.delete("/v1/scorers/sentiment").status_code == status
            assert ADMIN not in loaded.text
    assert "mood" not in served(server)
    assert ADMIN not in server.log.read_text()


def test_versions_are_dropped(server, admin):
    """Memory stays flat however often a scorer is replaced."""
    engine = server.engine()

    def load():
        answer = admin.post("/v1/scorers", json={"name": "mood", "path": "formality"})
        assert answer.status_code == 200

    for _ in range(2):
        load()
    time.sleep(0.5)
    before = engine.memory_info().rss
    for _ in range(5):
        load()
    time.sleep(0.5)
    grown = engine.memory_info().rss - before
    admin.delete("/v1/scorers/mood")
    assert grown < 60 * 2**20


def test_loads_come_one_at_a_time(server, admin):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        bodies = [{"name": f"mood-{i}", "path": "formality"} for i in range(4)]
        done = list(pool.map(lambda body: admin.post("/v1/scorers", json=body), bodies))
    assert [answer.status_code for answer in done] == [200] * 4
    assert {f"mood-{i}" for i in range(4)} <= set(served(server))
    assert len({answer.json()["version"] for answer in done}) == 4
    for body in bodies:
        assert admin.delete(f"/v1/scorers/{body['name']}").status_code == 200


def test_comparisons_are_fitted_by_the_scores_of_the_engine(admin):
    """As in this process, by text and by conversation; more answers than one call takes."""
    turns = [{"role": "user", "content": "How was the hotel?"}]
    answers = [f"The {part} was {word}." for part in ("bed", "room") for word in WORDS]
    comparisons = [
        {"messages": turns, "chosen": answers[i], "rejected": answers[-1 - i]} for i in range(6)
    ] + [{"prompt": "The room was", "answers": [" lovely.", " dirty."], "choice": "tie"}]
    names = ["sentiment", "brevity"]
    body = {"comparisons": comparisons, "scorers": names, "beta": 1, "save": False}
    answer = admin.post("/v1/presets/mine/fit", json=body)
    assert answer.status_code == 200, answer.text
    known = {name: demo.scorers()[name] for name in names}
    guidance = Guidance(known, AutoTokenizer.from_pretrained(demo.base()))
    rows = [Comparison(**one) for one in comparisons]
    scores = {}
    for question, texts in to_score(pairs_of(rows, [])).items():
        of = guidance.score_answers(question.messages() or question.prompt, texts)
        scores |= {(question, text): one for text, one in zip(texts, of, strict=True)}
    deviations = {n: s.info.deviation for n, s in guidance.guide.registry.scorers.items()}
    local = learn(rows, [], scores, deviations, {"beta": 1.0}).fields
    for name in names:
        one, other = answer.json()["weights"][name], local["weights"][name]
        assert one["mean"] == pytest.approx(other["mean"], abs=1e-2)
        assert one["interval"] == pytest.approx(other["interval"], abs=1e-2)
    assert [one["answers"] for one in answer.json()["ask"]] == [
        one["answers"] for one in local["ask"]
    ]
    long = [{"prompt": "x", "chosen": "long " * 600, "rejected": "y"}]
    refused = admin.post("/v1/presets/mine/fit", json={**body, "comparisons": long})
    assert refused.status_code == 400, refused.text


def test_a_dead_engine_ends_the_server(server):
    """The last of this module's server; with requests in flight: test_faults_process.py."""
    children = psutil.Process(server.process.pid).children(recursive=True)
    server.engine().kill()
    assert server.process.wait(20) != 0
    assert "engine died" in server.log.read_text()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
