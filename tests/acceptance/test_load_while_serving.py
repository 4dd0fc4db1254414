"""200 requests in flight while scorers are loaded and unloaded: nobody is disturbed."""

import concurrent.futures
import shutil
import threading
from functools import partial
from pathlib import Path

import httpx
import pytest
from conftest import KEY, start
from safetensors.torch import load_file, save_file

from trimtab_models import demo
from trimtab_models.manifest import write_manifest

pytestmark = pytest.mark.scorecard(letter="F")

ADMIN = "an-admin-key-for-tests"
REQUESTS, EVERY = 200, 20
GREEDY = {"temperature": 0, "max_tokens": 100, "ignore_eos": True, "beta": 4}
PROMPTS = ["The room was", "I bought a kettle and", "This cable", "We stayed", "The staff"]
CHECKPOINTS = ["sentiment", "negated", "brevity", "formality"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("shelf")
    for name, path in demo.scorers().items():
        shutil.copytree(Path(path), root / name)
    shutil.copytree(root / "sentiment", root / "negated")
    file = root / "negated" / "model.safetensors"
    tensors = load_file(file)
    tensors["score.weight"] = -tensors["score.weight"]
    save_file(tensors, file, {"format": "pt"})
    write_manifest(root / "negated")
    return root


@pytest.fixture(scope="module")
def server(root):
    command = ["trimtab_server.cli", "serve", "demo", "--scorer-dir", str(root)]
    command += ["--scorer", f"negated={root / 'negated'}", "--default-scorer", "sentiment=1"]
    env = {"TRIMTAB_API_KEY": KEY, "TRIMTAB_ADMIN_KEY": ADMIN}
    with start(command, ready="/ready", **env) as running:
        yield running


@pytest.fixture(scope="module")
def solo(server):
    """What each checkpoint makes of each prompt, one request at a time."""
    return {
        (path, prompt): server.generate(prompt=prompt, scorers={path: 1}, **GREEDY)["choices"][0][
            "token_ids"
        ]
        for path in CHECKPOINTS
        for prompt in PROMPTS
    }


def test_traffic_while_scorers_come_and_go(server, solo):
    """Each answer is token-equal to a solo run of the version that it tells."""
    headers = {"Authorization": f"Bearer {ADMIN}"}
    started, loads = threading.Semaphore(0), []
    changed = [threading.Event() for _ in range(REQUESTS // EVERY)]
    # Versions of `mood`, and which checkpoint each of them is.
    checkpoints = {}

    def request(http, i):
        if i >= 2 * EVERY:  # no more than one change behind
            changed[i // EVERY - 2].wait(120)
        started.release()
        fields = {"prompt": PROMPTS[i % len(PROMPTS)], "scorers": {"mood": 1}, **GREEDY}
        if i % 4 == 3:  # some name a scorer that always is there beside it
            fields["scorers"] = {"mood": 1, "brevity": 0}
        return fields["prompt"], http.post("/generate", json=fields)

    def change(client):
        for turn in range(REQUESTS // EVERY):
            for _ in range(EVERY):
                started.acquire()
            path = CHECKPOINTS[turn % len(CHECKPOINTS)]
            if turn % 3 == 2:
                loads.append(client.delete("/v1/scorers/mood"))
            loads.append(client.post("/v1/scorers", json={"name": "mood", "path": path}))
            checkpoints[loads[-1].json()["version"]] = path
            changed[turn].set()

    with httpx.Client(base_url=server.url, headers=headers, timeout=120) as client:
        loads.append(client.post("/v1/scorers", json={"name": "mood", "path": "sentiment"}))
        checkpoints[loads[-1].json()["version"]] = "sentiment"
        changing = threading.Thread(target=change, args=(client,))
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


def test_the_server_is_as_before(server, solo):
    for (path, prompt), expected in solo.items():
        answer = server.generate(prompt=prompt, scorers={path: 1}, **GREEDY)
        assert answer["choices"][0]["token_ids"] == expected
    assert server.http.get("/ready").status_code == 200
    assert "Traceback" not in server.log.read_text()
