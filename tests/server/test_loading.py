"""Scorers that are loaded and unloaded while serving."""

import concurrent.futures
import json
import os
import pickle
import shutil
import time
from pathlib import Path

import httpx
import pytest
import torch
from conftest import KEY, start
from httpx_sse import connect_sse
from safetensors.torch import load_file, save_file

from trimtab_models import demo
from trimtab_models.manifest import write_manifest

pytestmark = pytest.mark.scorecard(letter="F")

ADMIN = "an-admin-key-for-tests"
GREEDY = {"temperature": 0, "max_tokens": 48, "ignore_eos": True, "beta": 4}


def remade(source, target, change):
    """A copy of a checkpoint whose weights went through `change`; its manifest is right."""
    shutil.copytree(source, target)
    file = target / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    write_manifest(target)
    return target


def damaged(source, target, change):
    """A copy of a checkpoint whose file of weights went through `change`; its manifest is old."""
    shutil.copytree(source, target)
    file = target / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    return target


class Planted:
    """What a pickle may do when it is read."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


def flip(data):
    middle = len(data) * 3 // 4
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


def unsafe(root, good):
    """Directories that must be looked at before anything of them is opened."""
    shutil.copytree(demo.base(), root / "language")
    write_manifest(root / "language")
    for name in ("config.json", "tokenizer.json", "model.safetensors", "notes"):
        shutil.copytree(good, root / f"fifo-{name.partition('.')[0]}")
        fifo = root / f"fifo-{name.partition('.')[0]}" / name
        fifo.unlink(missing_ok=True)
        os.mkfifo(fifo)
    for name in ("config.json", "MANIFEST.json", "tokenizer.json"):
        huge = shutil.copytree(good, root / f"huge-{name.partition('.')[0].lower()}")
        with (huge / name).open("ab") as file:
            file.truncate(300 * 2**20)
    shutil.copytree(good, root / "crowded")
    for i in range(2000):
        (root / "crowded" / f"{i}.txt").touch()
    shutil.copytree(good, root / "looped")
    (root / "looped" / "again").symlink_to(root / "looped")
    code = shutil.copytree(good, root / "code")
    (code / "mine.py").write_text(f"open({str(root / 'canary')!r}, 'w')")
    content = json.loads((code / "tokenizer_config.json").read_text())
    content |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "mine.Mine"]}}
    (code / "tokenizer_config.json").write_text(json.dumps(content))
    write_manifest(code)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A scorer_dir: sound checkpoints, broken ones, and what should never be read."""
    root = tmp_path_factory.mktemp("shelf")
    sources = {name: Path(path) for name, path in demo.scorers().items()}
    for name, path in sources.items():
        shutil.copytree(path, root / name)
    good = sources["sentiment"]

    def negate(tensors):
        tensors["score.weight"] = -tensors["score.weight"]

    def cut(tensors):
        tensors["score.weight"] = tensors["score.weight"][:, :-1].contiguous()

    def forget(tensors):
        del tensors["score.weight"]

    def spoil(tensors):
        tensors["score.weight"] = torch.full_like(tensors["score.weight"], torch.nan)

    def shrink(tensors):
        (name,) = [name for name in tensors if "embed_tokens" in name]
        tensors[name] = tensors[name][:512].contiguous()

    remade(good, root / "negated", negate)
    remade(good, root / "wrong-shape", cut)
    remade(good, root / "headless", forget)
    remade(good, root / "nan", spoil)
    vocabulary = remade(good, root / "wrong-vocabulary", shrink)
    config = json.loads((vocabulary / "config.json").read_text())
    (vocabulary / "config.json").write_text(json.dumps({**config, "vocab_size": 512}))
    write_manifest(vocabulary)
    damaged(good, root / "truncated", lambda data: data[: len(data) // 2])
    damaged(good, root / "flipped", flip)
    header = damaged(good, root / "huge", lambda data: data)
    spec = {"w": {"dtype": "F32", "shape": [2**36], "data_offsets": [0, 2**38]}}
    text = json.dumps(spec).encode()
    with (header / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 2**38)
    evil = damaged(good, root / "pickled", lambda _: pickle.dumps(Planted(root / "canary")))
    write_manifest(evil)
    shutil.copytree(good, root / "unsigned")
    (root / "unsigned" / "MANIFEST.json").unlink()
    shutil.copytree(good, root / "unnamed")
    (root / "unnamed" / "MANIFEST.json").write_text("{}")
    shutil.copytree(good, root / "no-weights")
    (root / "no-weights" / "model.safetensors").rename(root / "no-weights" / "pytorch_model.bin")
    write_manifest(root / "no-weights")
    (root / "link").symlink_to(good)
    shutil.copytree(good, root / "linked")
    (root / "linked" / "model.safetensors").unlink()
    (root / "linked" / "model.safetensors").symlink_to(good / "model.safetensors")
    shutil.copytree(good, root / "adapter")
    (root / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "gpt2"}')
    unsafe(root, good)
    return root


@pytest.fixture(scope="module")
def server(shelf):
    command = ["trimtab_server.cli", "serve", "demo", "--scorer-dir", str(shelf)]
    command += ["--scorer", "mix=sentiment:1+brevity:-1,family=composite"]
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
    pickle.loads(pickle.dumps(Planted(canary)))
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
