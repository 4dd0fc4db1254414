"""The processor on a stock vLLM server: flags alone, guidance by `vllm_xargs`."""

import json

import pytest
from conftest import start

from trimtab_models import demo

pytestmark = pytest.mark.engine

SERVE = "vllm.entrypoints.launchers.api_server.entry"
ASKED = {"prompt": "The room was", "max_tokens": 24, "temperature": 0}


@pytest.fixture(scope="module")
def stock():
    scorers = {name: {"path": str(path)} for name, path in demo.scorers().items()}
    command = [SERVE, "--model", str(demo.base()), "--served-model-name", "demo"]
    command += ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
    command += ["--logits-processors", "trimtab.adapters.vllm:GuidanceProcessor"]
    command += ["--worker-extension-cls", "trimtab.adapters.worker.GuidanceWorker"]
    command += ["--additional-config", json.dumps({"trimtab": {"scorers": scorers}})]
    with start(command, ready="/health", VLLM_LOGGING_LEVEL="ERROR") as server:
        yield server


def complete(server, **xargs):
    answer = server.http.post("/v1/completions", json={**ASKED, "vllm_xargs": xargs})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def test_guidance_by_flat_keys(stock, server):
    base = stock.http.post("/v1/completions", json=ASKED).json()["choices"][0]["text"]
    assert complete(stock, trimtab_beta=0) == base
    for scorers, weights in (("sentiment=1", {"sentiment": 1}), ("brevity=-1", {"brevity": -1})):
        steered = complete(stock, trimtab_scorers=scorers, trimtab_beta=4)
        assert steered != base
        ours = server.generate(**ASKED, scorers=weights, beta=4)
        assert steered == ours["choices"][0]["text"]


def test_bad_values_are_refused(stock):
    for xargs in ({"trimtab_beta": "strong"}, {"trimtab_k": 0}, {"trimtab_unheard_of": 1}):
        answer = stock.http.post("/v1/completions", json={**ASKED, "vllm_xargs": xargs})
        assert answer.status_code == 400, xargs
        assert "error" in answer.json()
