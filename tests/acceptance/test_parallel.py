"""More than one worker: the same tokens as from one, and a fault that makes no ranks differ."""

import concurrent.futures
import shutil
from pathlib import Path

import httpx
import pytest
from conftest import KEY, start

from trimtab_models import demo

pytestmark = pytest.mark.engine

ADMIN = "an-admin-key-for-tests"
FIXED = {"max_tokens": 32, "ignore_eos": True}
PROMPTS = ["The room was", "I bought a kettle and", "This cable"]
COMPOSED = {"sentiment": 1, "formality": -1, "brevity": 0.5}
ASKED = [
    {"prompt": prompt, "scorers": COMPOSED, **how, **FIXED}
    for prompt in PROMPTS
    for how in (
        {"temperature": 0, "beta": 4},
        {"temperature": 1, "seed": 7, "beta": 2, "tail": "mean"},
        {"temperature": 0, "beta": 0},
        # From its 20th token on it fails, and the base goes on alone.
        {"temperature": 0, "scorers": {"raises": 1, "sentiment": 1}, "on_error": "unguided"},
    )
]
FAULTY = {"prompt": "The", "scorers": {"raises": 1}, "temperature": 0, **FIXED}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    root = tmp_path_factory.mktemp("shelf")
    for name, path in demo.scorers().items():
        shutil.copytree(Path(path), root / name)
    return root


def answers(server):
    """Choices, twice, around faults: one request at a time, then all at once among more faults."""
    first = [server.generate(**fields)["choices"][0] for fields in ASKED]
    fault = server.http.post("/generate", json=FAULTY)
    assert fault.status_code == 500
    assert fault.json()["error"]["type"] == "scorer_error"
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        faults = [pool.submit(server.http.post, "/generate", json=FAULTY) for _ in range(2)]
        again = list(pool.map(lambda f: server.generate(**f)["choices"][0], ASKED))
    assert {future.result().status_code for future in faults} == {500}
    assert all(choice["guidance"] is not None for choice in first + again)
    return first, again


def run(shelf, *flags):
    """The answers of a server with these flags, which then loads a scorer too."""
    command = ["trimtab_server.cli", "serve", "demo", "--scorer-dir", str(shelf), *flags]
    command += ["--scorer", "raises=faulty:raises,family=function"]
    env = {
        "TRIMTAB_API_KEY": KEY,
        "TRIMTAB_ADMIN_KEY": ADMIN,
        # vLLM would bind each rank to a NUMA node of its own; there may be one alone.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    with start(command, ready="/ready", **env) as server:
        first, again = answers(server)
        headers = {"Authorization": f"Bearer {ADMIN}"}
        body = {"name": "mood", "path": "sentiment"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=120) as admin:
            assert admin.post("/v1/scorers", json=body).status_code == 200
            named = {"prompt": "The room was", "beta": 4, "temperature": 0, **FIXED}
            mood, sentiment = (
                [
                    server.generate(scorers={name: 1}, **named)["choices"][0]["token_ids"]
                    for _ in range(2)
                ]
                for name in ("mood", "sentiment")
            )
            assert mood == sentiment
            assert admin.delete("/v1/scorers/mood").status_code == 200
        ready = server.http.get("/ready")
        assert ready.status_code == 200, ready.text
    return first, again


@pytest.fixture(scope="module")
def alone(server):
    return answers(server)


# Run eagerly on the CPU, vLLM 0.32 itself dies of its first request under pipeline parallelism.
@pytest.mark.parametrize("way", ["tensor", "data"])
def test_token_equal_to_one_worker(alone, shelf, way):
    for one, several in zip(alone, run(shelf, f"--{way}-parallel-size", "2"), strict=True):
        assert [c["token_ids"] for c in several] == [c["token_ids"] for c in one]
        for ours, theirs in zip(several, one, strict=True):
            assert ours["guidance"]["kl"] == pytest.approx(theirs["guidance"]["kl"], abs=1e-3)
            assert (ours["guidance"]["error"] is None) == (theirs["guidance"]["error"] is None)
