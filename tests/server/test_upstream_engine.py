"""The black-box base over a real vLLM server, by token ids: what the in-process server says."""

import httpx
import pytest
from conftest import start
from upstream_over import ask, over, upstream_settings

from trimtab_models import demo

pytestmark = pytest.mark.engine

PROMPTS = demo.prompts("test", 6, seed=11)
TOP = 20


def asked_for(prompt, **fields):
    return {"messages": [{"role": "user", "content": prompt}], **fields}


async def test_greedy_answers_are_the_engines_own(server):
    compared = 0
    async with over(server) as one, over(server, upstream_block=8) as block:
        for i, prompt in enumerate(PROMPTS):
            scorers = {"sentiment": 1.0, "brevity": -0.5} if i % 2 else {"sentiment": -1.0}
            guided = {"scorers": scorers, "beta": 3.0, "temperature": 0, "max_tokens": 40}
            body = asked_for(prompt, **guided, trace=True)
            engine = server.generate(**body)["choices"][0]
            needed = max(len(step["candidates"]) for step in engine["guidance"]["trace"])
            if needed > TOP:
                continue
            compared += 1
            for client in (one, block):
                ours = (await ask(client, **body))["choices"][0]
                assert ours["token_ids"] == engine["token_ids"]
                assert ours["text"] == engine["text"]
                assert ours["finish_reason"] == engine["finish_reason"]
                mine, theirs = ours["guidance"], engine["guidance"]
                assert set(mine) == {*theirs, "unrevealed"}
                for name in ("kl", "scores", "steps", "scored_steps", "scored_tokens"):
                    assert mine[name] == pytest.approx(theirs[name], abs=2e-3), name
                assert 0 <= mine["unrevealed"] < 0.2
    assert compared >= 3


async def test_openai_routes_over_the_engine(server):
    guidance = {"scorers": {"sentiment": 1.0}, "beta": 3.0}
    chat = asked_for(PROMPTS[0], temperature=0, max_tokens=24, guidance=guidance)
    text = {"prompt": "The room was", "temperature": 0, "max_tokens": 12}
    async with over(server) as client:
        for path, body in (("/v1/chat/completions", chat), ("/v1/completions", text)):
            engine = server.http.post(path, json=body).json()["choices"][0]
            ours = (await client.post(path, json=body)).json()["choices"][0]
            for name in ("text", "finish_reason"):
                assert ours.get(name) == engine.get(name)
            if path.startswith("/v1/chat"):
                assert ours["message"]["content"] == engine["message"]["content"]
            assert ("guidance" in ours) == ("guidance" in body)


async def test_ids_stop_at_stop_strings(server):
    async with over(server) as client:
        body = {"prompt": "The room was", "beta": 0, "temperature": 0, "max_tokens": 30}
        plain = (await ask(client, **body))["choices"][0]["token_ids"]
        stop = plain[5]
        cut = (await ask(client, **body, stop_token_ids=[stop]))["choices"][0]
        same = server.generate(**body, stop_token_ids=[stop])["choices"][0]
        for name in ("token_ids", "text", "finish_reason"):
            assert cut[name] == same[name]
        on = (await ask(client, **body | {"max_tokens": 60}, ignore_eos=True))["choices"][0]
        assert len(on["token_ids"]) == 60
        refused = await client.post("/generate", json={"prompt_token_ids": [10**6]})
        assert refused.status_code == 400


def test_the_command_serves_an_upstream(server):
    """`trimtab serve --upstream`, with flags and environment, until SIGTERM."""
    command = ["trimtab_server.cli", "serve"]
    for name, value in upstream_settings(server).items():
        for one in value if isinstance(value, list) else [value]:
            if name != "upstream_key":
                command += [f"--{name.replace('_', '-')}", one]
    key = upstream_settings(server)["upstream_key"]
    ours = "a-key-of-ours"
    env = {"TRIMTAB_UPSTREAM_KEY": key, "TRIMTAB_API_KEY": ours, "TRIMTAB_LOG_LEVEL": "debug"}
    with start(command, ready="/ready", key=ours, **env) as running:
        body = asked_for(PROMPTS[0], scorers={"sentiment": 1}, beta=2, max_tokens=8)
        assert running.generate(**body)["choices"][0]["guidance"]["kl"] > 0
        assert httpx.get(f"{running.url}/v1/models").status_code == 401
        scorers = running.http.get("/v1/scorers").json()["data"]
        assert all(scorer["healthy"] for scorer in scorers)
        log = running.log
        text = log.read_text()
        assert "ready: demo at" in text
        assert key not in text
    assert running.process.returncode == 0
