"""A server whose engine tells made-up stories, with traces, as fast as they can be sent.

The routes, keys, headers and pages are the real ones. The prompt says how the story goes.
"""

import asyncio
import math
import random
import threading
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from conftest import free_port

from trimtab.engine import Piece, Version
from trimtab_server import app
from trimtab_server.settings import Settings
from trimtab_server.sizes import Bounds
from trimtab_server.state import State

MARKUP = [
    "<img src=x onerror=\"document.title='owned'\">",
    "<script>document.title='owned'</script>",
    "&lt;b&gt;",
    "</div><style>*{display:none}</style>",
    "\u202e",
]
PLAIN = "the a calm plain bright old river house light morning was is seems and but then quietly"
WORDS = [
    *(f" {word}" for word in [*PLAIN.split(), "slowly", "again", "warm", "café", "東京", "🙂"])
]
WORDS += [".", ",", "\n"]
VOCABULARY = [*WORDS, *MARKUP]
NAMES = ("calm", "plainness", "length")
K, TAIL = 16, 4
SNIP = "SNIP"
"""The connection ends before this is sent."""
LONG = 2000


@dataclass
class Story:
    """See trimtab.engine.Engine."""

    model: str = "story"

    async def generate(self, request):
        prompt = request.text or request.turns[-1]["content"]
        guidance, begun = request.guidance, list(request.answer)
        words = VOCABULARY if "markup" in prompt else WORDS
        length = LONG if "long" in prompt else min(request.sampling.max_tokens, 30)
        for index in range(request.sampling.n):
            ids, trace = list(begun), []
            rng = random.Random(f"{request.sampling.seed} {index} {prompt} {begun}")
            for position in range(length):
                step = _step(rng, position, guidance, words)
                ids.append(step["token"])
                trace.append(step)
                if "fails" in prompt and position == 5:
                    raise RuntimeError("planted")
                last = position + 1 == length
                record = _record(trace, guidance, ids) if last else None
                if record and guidance.steers and guidance.trace:
                    record["trace"] = trace
                yield Piece(
                    index,
                    SNIP if "breaks" in prompt and position == 20 else words[step["token"]],
                    [step["token"]],
                    "length" if last else None,
                    record,
                    prompt_tokens=3,
                    trace=[step] if request.streams_trace and guidance.steers else None,
                )
                await asyncio.sleep(0.05 if "slowly" in prompt else 0)

    async def scorers(self, seconds):
        kind = {
            "distributional": False,
            "whole": False,
            "ensemble": False,
            "reads": "tokens",
            "suspended": False,
        }
        return [
            {"name": name, "family": family, "deviation": 1.0, **kind}
            for name, family in zip(NAMES, ("head", "<b>bold</b>", "function"), strict=True)
        ]

    def problem(self):
        return None

    async def close(self):
        pass


def _step(rng, position, guidance, words):
    """A step at the strength of the request; without guidance, the most likely token."""
    ids = rng.sample(range(len(words)), K + TAIL)
    raw = sorted((rng.gauss(0, 1.5) for _ in ids), reverse=True)
    norm = math.log(sum(map(math.exp, raw))) + 0.01
    logprobs = [value - norm for value in raw]
    scores = {name: [rng.gauss(0, 0.5) for _ in range(K)] for name in NAMES}
    weights = guidance.scorers if guidance.steers else {}
    bonus = [
        guidance.beta * sum(w * scores[name][i] for name, w in weights.items()) for i in range(K)
    ]
    mean = sum(bonus) / K
    tail = 1 - sum(math.exp(logprob) for logprob in logprobs[:K])
    exponents = [logprob + a for logprob, a in zip(logprobs, bonus, strict=False)]
    log_z = math.log(sum(map(math.exp, exponents)) + tail * math.exp(mean))
    guided = [exponent - log_z for exponent in exponents]
    kl = sum(math.exp(g) * (g - p) for g, p in zip(guided, logprobs, strict=False))
    chosen = max(range(K), key=guided.__getitem__)
    return {
        "position": position,
        "token": ids[chosen],
        "kl": max(kl, 0.0),
        "candidates": ids[:K],
        "logprobs": logprobs[:K],
        "tail": ids[K:],
        "tail_logprobs": logprobs[K:],
        "scores": {name: scores[name] for name, weight in weights.items() if weight},
        "guided_logprobs": guided,
        "texts": [words[token] for token in ids[:K]],
        "tail_texts": [words[token] for token in ids[K:]],
    }


def _record(trace, guidance, ids):
    steers = guidance.steers
    return {
        "kl": sum(step["kl"] for step in trace) if steers else 0.0,
        "kl_tail": 0.0,
        "scores": {name: (sum(ids) % 7) / 7 + steers for name in guidance.scorers},
        "steps": len(trace) if steers else 0,
        "error": None,
    }


class Cut:
    """ASGI middleware: ends a connection in the middle of its answer."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        ended = False

        async def cut(message):
            nonlocal ended
            ended |= SNIP.encode() in message.get("body", b"")
            if ended:
                raise ConnectionError
            await send(message)

        await self.app(scope, receive, cut)


@contextmanager
def serving(**settings):
    """The address of a server of stories."""
    versions = {name: Version(name, 1, "function") for name in NAMES}
    state = State(Story(), versions, None, complaints=dict.fromkeys(NAMES))
    made = app.build(state, Settings(model="m", **settings), Bounds.of(8192, 13, 2**20), 64)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(Cut(made), port=port, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
