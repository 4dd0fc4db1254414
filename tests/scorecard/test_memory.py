"""Scorecard R: what a request leaves behind in each process, when no two requests are alike.

Everything that something might be kept by differs: prompts, scorer sets, strengths, ids, users,
salts, seeds, stop strings, grammars, models, names that do not exist, paths.
"""

import asyncio
import random

import httpx
import pytest
from conftest import KEY, start

from scorecard import full
from scorecard.slope import growth, sizes

REQUESTS = 10_000
AT_ONCE = 16
WEIGH_EVERY = 100
BYTES_A_REQUEST = 1024
SCORERS = ("sentiment", "formality", "brevity")
FLAGS = (
    *("--num-gpu-blocks-override", "64"),
    *("--block-size", "32"),  # a larger cache would fill for longer than the run
    *("--cache-bytes", str(2**22)),
    *("--max-num-seqs", "16"),
)
WORDS = "the room was small but staff were kind and food good cable kettle hotel"


def random_request(number: int, rng: random.Random) -> tuple[str, dict, int]:
    """A request, and the status that it has."""
    name = f"name{number}"
    prompt = " ".join(rng.choices(WORDS.split(), k=rng.randint(1, 12)))
    scorers = {scorer: round(rng.uniform(-2, 2), 6) for scorer in rng.sample(SCORERS, 2)}
    guidance = {"scorers": scorers, "beta": round(rng.uniform(0, 4), 6), "k": rng.randint(2, 20)}
    sampling = {"max_tokens": rng.randint(1, 3), "seed": number, "temperature": rng.random()}
    names = {"user": name, "request_id": name, "cache_salt": name, "stop": [name]}
    chat = {"messages": [{"role": "user", "content": f"{prompt} {name}"}], **sampling}
    pattern = {"structured_outputs": {"regex": f"(a|{name})+"}}
    return rng.choice(
        [
            ("/generate", {"prompt": prompt, **guidance, **sampling}, 200),
            ("/generate", {"prompt": prompt, **guidance, **sampling, "stream": True}, 200),
            ("/v1/completions", {"prompt": prompt, **sampling, **names}, 200),
            ("/v1/completions", {"prompt": prompt, **sampling, "guidance": guidance}, 200),
            ("/v1/chat/completions", {**chat, "guidance": guidance, "stream": True}, 200),
            ("/v1/chat/completions", {**chat, "n": 2, "temperature": 1.0}, 200),
            ("/v1/completions", {"prompt": prompt, **sampling, **pattern}, 200),
            ("/v1/chat/completions", {**chat, "model": name}, 404),
            ("/generate", {"prompt": prompt, "scorers": {name: 1}}, 404),
            ("/v1/completions", {"prompt": name, "temperature": name}, 400),
            (f"/{name}", {name: name}, 404),
            ("/tokenize", {"prompt": f"{prompt} {name}"}, 200),
        ]
    )


async def run(server, requests: int, seed: int = 7) -> dict[str, list[tuple[int, int]]]:
    """The sizes of each process on the way."""
    rng, numbers = random.Random(seed), iter(range(requests))
    points: dict[str, list[tuple[int, int]]] = {}
    headers = {"Authorization": f"Bearer {KEY}"}
    soon = httpx.Limits(keepalive_expiry=1)  # a client that is starved meets a closed connection
    async with httpx.AsyncClient(
        base_url=server.url, headers=headers, timeout=60, limits=soon
    ) as http:

        async def client():
            for number in numbers:
                path, fields, status = random_request(number, rng)
                answer = await http.post(path, json=fields, headers={"X-Request-Id": f"{number}"})
                assert answer.status_code == status, (path, answer.text)
                if number % WEIGH_EVERY == 0:
                    for name, size in sizes(server.process.pid).items():
                        points.setdefault(name, []).append((number, size))

        await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return points


@pytest.mark.engine
@pytest.mark.scorecard(letter="R")
@pytest.mark.skipif(not full(), reason="too short to tell; SCORECARD=full")
def test_no_process_grows():
    command = ["trimtab_server.cli", "serve", "demo", *FLAGS]
    with start(command, ready="/ready", TRIMTAB_API_KEY=KEY) as server:
        points = asyncio.run(run(server, REQUESTS))
    growths = {name: growth(several) for name, several in points.items()}
    for name, (slope, bound) in growths.items():
        first, last = points[name][0][1], points[name][-1][1]
        report = f"{slope:.0f} B a request, at most {bound:.0f}"
        print(f"{name}: {report}; {first / 2**20:.1f} MiB at first, {last / 2**20:.1f} at last")
    assert {"API", "engine"} <= set(growths)
    assert all(bound <= BYTES_A_REQUEST for _, bound in growths.values())
