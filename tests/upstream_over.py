"""Our application over the session's server as its upstream, for tests on the real engine."""

from contextlib import asynccontextmanager

import httpx
from conftest import KEY

from trimtab_models import demo
from trimtab_server import settings
from trimtab_server.upstream import build


def upstream_settings(server, **more):
    """Settings, by token ids."""
    return {
        "upstream": f"{server.url}/v1",
        "upstream_model": "demo",
        "upstream_key": KEY,
        "tokenizer": str(demo.base()),
        "scorer": [f"{name}={path}" for name, path in demo.scorers().items()],
        **more,
    }


@asynccontextmanager
async def over(server, **more):
    """A client of it, in this process."""
    app = build(settings.load(upstream_settings(server, **more)))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://us", timeout=120) as client:
        yield client
    await app.state.trimtab.engine.close()


async def ask(client, **fields):
    answer = await client.post("/generate", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()
