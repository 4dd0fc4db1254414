"""The long commands of the pages run, word for word: `make pages`, about half an hour on two cores.

What a page leaves to its reader stands in the working directory under the names of the page: models
and classifiers are directories with the demo's networks, `my.module:function` is a module.
"""

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch
from conftest import environment, free_port
from pages import ROOT, commands, scripts
from transformers import AutoModelForSequenceClassification

from trimtab_models import demo

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.skipif("PAGES" not in os.environ, reason="make pages sets PAGES"),
]

ELSEWHERE = {
    r"-parallel-size|--nnodes|--num_machines": "several devices or machines",
    r"fsdp\.yaml": "a GPU",
    r"@Qwen": "the hub",
    r"smollm2|everyday|instructions|bicycle|demo train": "SmolLM2; tests/real and the README's own",
    r"gym:": "the extra gym; tests/lab/test_gym.py",
    r"^trimtab arena (reviews|configs)|trimtab_lab.worlds": "hours; benchmarks/results/arena",
    r"^trimtab arena my-task|^ray|--ray": "Ray; tests/lab/test_ray.py",
    r"vllm_router|--port 800[12]": "the router; tests/acceptance/test_router.py",
    r"https://": "an upstream; tests/server/test_upstream.py",
    r"^make|^vllm|^accelerate|^docker|^helm|^promtool|^litellm": "tests of their own",
    r"^trimtab publish \S+ --to my-org": "a write to the hub; tests/models/test_publish.py",
    r"^curl|^trimtab (generate|batch|chat|doctor|inspect|fleet)|^printf": "a server of their own",
    r"trl-lib/": "a process reward model; tests/guidance/test_text_steps.py",
    r"SMALL": "a draft model; tests/guidance/test_drafts_vllm.py",
}
"""Patterns of commands that do not run here, and what runs them or what they need."""
PLACES = ("cafe", "hotel", "museum", "camera", "jacket", "lamp", "gym", "park", "theater", "bar")
PROMPTS = [f"How was the {place}?" for place in PLACES]
BETTER, WORSE = "The price was good. I loved the price.", "It was bad, and far too small."
MODULE = "def function(prompt, completion): return float(completion.count('price'))\n"


MODELS = ("BASE", "meta-llama/Llama-3.1-8B-Instruct")
SCORERS = ("kindness", "kindness-2", "checkpoints/kindness", "my-org/brevity-value")
FOREIGN = {
    "OpenAssistant/reward-model-deberta-v3-large-v2": "deberta",
    "my-org/reward-model": "deberta",
    "s-nlp/roberta-base-formality-ranker": "roberta",
    "pythia-value": "pythia",
}
LABELLED = "s-nlp/roberta-base-formality-ranker"
PAGES = ("README.md", "docs/training.md", "docs/scorers.md", "docs/loading.md", "docs/arena.md")


def here(script: str) -> list[str]:
    """The commands of a script that run here."""
    lines = [shlex.join(map(os.path.expandvars, words)) for words in commands(script)]
    return [line for line in lines if not any(re.search(one, line) for one in ELSEWHERE)]


def blocks(page: str) -> list[list[str]]:
    """Blocks of a page, with the commands that run here."""
    return [lines for script in scripts((ROOT / page).read_text()) if (lines := here(script))]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Classifiers with tokenizers of their own."""
    folder = tmp_path_factory.mktemp("foreign")
    for kind in set(FOREIGN.values()):
        run(folder, f"python -m trimtab_models.demo.foreign {kind} --out {kind}")
    with_labels(folder / FOREIGN[LABELLED], folder / "labelled")
    return folder


def with_labels(source, out):
    """A classifier of one logit as one of two labels, of which the page names the second."""
    model = AutoModelForSequenceClassification.from_pretrained(source)
    last = model.classifier.out_proj
    both = torch.nn.Linear(last.in_features, 2)
    both.weight.data = torch.cat((-last.weight, last.weight)).data
    both.bias.data = torch.cat((-last.bias, last.bias)).data
    model.classifier.out_proj = both
    model.config.id2label = {0: "informal", 1: "formal"}
    model.config.label2id = {"informal": 0, "formal": 1}
    shutil.copytree(source, out)
    model.save_pretrained(out)
    (out / "MANIFEST.json").unlink(missing_ok=True)


@pytest.fixture
def folder(page, foreign, tmp_path):
    """A reader's working directory, without what the page itself makes."""
    made = set(re.findall(r"out=(\S+)", " ".join(itertools.chain(*blocks(page)))))
    for name in MODELS:
        shutil.copytree(demo.base(), tmp_path / name)
    for name in set(SCORERS) - made:
        shutil.copytree(demo.scorers()["sentiment"], tmp_path / name)
    for name, kind in FOREIGN.items():
        source = "labelled" if name == LABELLED else kind
        shutil.copytree(foreign / source, tmp_path / name)
    template = "{% for turn in messages %}{{ turn.content }} {% endfor %}"
    (tmp_path / "my-org" / "reward-model" / "chat_template.jinja").write_text(template)
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "module.py").write_text(MODULE)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": one["prompt"], "chosen": BETTER, "rejected": WORSE} for one in rows]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (tmp_path / "shelf").mkdir()
    (tmp_path / "models").symlink_to(ROOT / "models")
    return tmp_path


def variables() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return environment(PATH=path)


def run(folder: Path, line: str) -> None:
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=variables(),
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def serve(folder: Path, line: str) -> None:
    """Start a server, wait until it is ready, end it."""
    port = free_port()
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", f"exec env {line}"],
            cwd=folder,
            env=variables() | {"TRIMTAB_PORT": str(port)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "serve.log").read_text()[-3000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        else:
            pytest.fail((folder / "serve.log").read_text()[-3000:])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert process.returncode == 0


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page, folder):
    for line in itertools.chain(*blocks(page)):
        (serve if " serve " in line else run)(folder, line)
