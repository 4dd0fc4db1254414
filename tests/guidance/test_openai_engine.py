"""The black-box upstream as an engine of the library, without a server."""

import asyncio
import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from upstream_fake import KEY, Fake

from trimtab import GuidanceConfig, GuidanceParams, ScorerFault
from trimtab.adapters.openai import UpstreamConfig, load_engine
from trimtab.engine import GenerationRequest, Sampling
from trimtab.errors import InvalidRequest, StartError, UpstreamFailed, UpstreamTimeout

CONFIG = {"url": "http://upstream/v1", "model": "m", "ends": ("<end>",)}
SCORERS = {
    "good": {"path": "upstream_fake:likes_good", "family": "function", "reads": "text"},
    "late": {"path": "upstream_fake:fails_late", "family": "function", "reads": "text"},
}


class Used:
    """An engine over a fake, and what it reported."""

    def __init__(self, **config):
        self.fake, self.outcomes, self.records = Fake(), [], []
        self.engine = load_engine(
            UpstreamConfig(**{**CONFIG, **config}),
            GuidanceConfig.model_validate({"scorers": SCORERS}),
            transport=self.fake.transport(),
            on_call=self.outcomes.append,
            on_record=self.records.append,
        )

    async def pieces(self, weights=None, text="Say it:", **sampling):
        params = None
        if weights is not None:
            params = GuidanceParams(scorers=weights, beta=2.0)
        sampling = Sampling(**{"max_tokens": 12, "temperature": 0, **sampling})
        request = GenerationRequest(text=text, sampling=sampling, guidance=params)
        return [piece async for piece in self.engine.generate(request)]


def text_of(pieces, index=0):
    return "".join(piece.text for piece in pieces if piece.index == index)


async def test_it_steers_and_reports():
    used = Used()
    steered, base = await used.pieces({"good": 1.0}), await used.pieces()
    assert text_of(steered).count(" good") > text_of(base).count(" good")
    assert steered[-1].finish_reason
    assert steered[-1].record["kl"] > 0
    assert base[-1].record is None
    assert used.records == [steered[-1].record]
    assert used.outcomes == ["ok"] * len(used.fake.calls)
    await used.engine.close()


async def test_several_choices_come_together():
    used = Used()
    pieces = await used.pieces({"good": 1.0}, n=3, temperature=1.0, seed=1)
    indices = [piece.index for piece in pieces]
    assert set(indices) == {0, 1, 2}
    assert indices != sorted(indices)
    assert len({text_of(pieces, index) for index in range(3)}) > 1
    await used.engine.close()


async def test_errors_are_of_the_tree():
    used = Used(retries=0)
    with pytest.raises(ScorerFault, match="scorer 'late' failed"):
        await used.pieces({"late": 1.0}, text="Say it, and say it again:")
    assert used.records[-1]["error"]["scorer"] == "late"
    with pytest.raises(InvalidRequest, match="logprobs"):
        await used.pieces(logprobs=1)
    assert used.engine.problem() is None
    used.fake.faults = [httpx.Response(500)]
    with pytest.raises(UpstreamFailed, match="HTTP status 500"):
        await used.pieces()
    assert used.outcomes[-1] == "failed"
    assert used.engine.problem() == "the upstream fails"
    await used.engine.close()


async def test_an_answer_has_a_deadline():
    async def slow(body):
        await asyncio.sleep(60)

    used = Used(deadline=0.1)
    used.fake.faults = [slow]
    with pytest.raises(UpstreamTimeout, match=r"0\.1 seconds"):
        await used.pieces()
    await used.engine.close()


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"url": "upstream"}, "URL"),
        ({"api": "chat"}, "continue partial answers"),
        ({"api": "chat", "continuation": "prefix", "tokenizer": "x"}, "completions"),
    ],
)
def test_settings_that_contradict_each_other(config, why):
    with pytest.raises(ValueError, match=why):
        UpstreamConfig(**{**CONFIG, **config})


def test_a_key_is_not_shown():
    assert KEY not in repr(UpstreamConfig(**CONFIG, key=KEY))


def test_a_scorer_of_ids_needs_a_tokenizer():
    spec = {"path": "upstream_fake:reads_ids", "family": "function"}
    with pytest.raises(StartError, match="give --tokenizer"):
        load_engine(
            UpstreamConfig(**CONFIG), GuidanceConfig.model_validate({"scorers": {"x": spec}})
        )


def test_its_configuration_is_light():
    code = (
        "import sys; from trimtab.adapters.openai import UpstreamConfig; "
        "assert not {'torch', 'httpx', 'vllm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Endpoint(BaseHTTPRequestHandler):
    """The fake upstream over HTTP."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = json.dumps(self.server.fake.answer(body, False)).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def test_the_documents_example_runs(capsys):
    """Word for word but for the address and the scorer."""
    page = Path(__file__).parents[2] / "docs" / "upstream.md"
    [code] = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        server.fake = Fake()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        changes = {
            "https://host/v1": f"http://127.0.0.1:{server.server_port}/v1",
            "<|im_end|>": "<end>",
            '{"path": "./formality-ranker", "family": "text", "reads": "answer"}': str(
                SCORERS["good"]
            ),
        }
        for old, new in changes.items():
            assert old in code
            code = code.replace(old, new)
        try:
            exec(compile(code, "upstream.md", "exec"), {"__name__": "__main__"})
        finally:
            server.shutdown()
            thread.join()
    text, kl = capsys.readouterr().out.rsplit("KL ", 1)
    assert len(text.split()) > 3
    assert float(kl) > 0
