"""`trimtab serve smollm2`: a real base, served by name and steered."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from trimtab_server.bases import UNTRAINED

README = (Path(__file__).parents[2] / "README.md").read_text()
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Tell me about a good day."}]


def answer(server, messages, **fields):
    return server.generate(messages=messages, temperature=0, max_tokens=24, **fields)["choices"][0]


def test_it_answers(real_server):
    assert "Paris" in answer(real_server, QUESTION, beta=0)["text"]
    [model] = real_server.http.get("/v1/models").json()["data"]
    assert model["id"] == "smollm2"


def test_a_function_steers_it(real_server):
    base = answer(real_server, STORY, beta=0)
    guided = answer(real_server, STORY, beta=6, scorers={"exclaims": 1})
    assert guided["text"].count("!") > base["text"].count("!")
    assert guided["guidance"]["kl"] > 0


def test_the_commands_of_the_readme_run(real_server):
    """A curl and a trimtab command, word for word but for address and key."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)
    [block] = [code for code in blocks if "my new bicycle" in code and "curl" in code]
    ours = f"{shlex.quote(sys.executable)} -m trimtab_server.cli generate"
    changes = {
        "http://localhost:8000": real_server.url,
        "curl -s": "curl -sS --fail-with-body",
        "trimtab generate": f"{ours} --url {real_server.url}",
    }
    for old, new in changes.items():
        assert old in block
        block = block.replace(old, new)
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{block}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer, end = json.JSONDecoder().raw_decode(done.stdout)
    assert answer["choices"][0]["guidance"]["scores"]["kindness"] > 0
    assert len(done.stdout[end:].split()) > 4


def test_its_log_says_only_what_matters(real_server):
    """That it is ready, and how to train scorers if there are none; nothing of the libraries."""
    *others, line = real_server.log.read_text().splitlines()
    assert line.startswith("ready: smollm2 at ")
    assert others in ([], [f"trimtab: {UNTRAINED}"])
