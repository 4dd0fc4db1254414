"""The soak: thousands of mixed requests at once, a quarter of them cancelled, scorers changing.

Every answer that survives must be token-equal to a run of the same request alone.
"""

import asyncio
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import psutil
from conftest import KEY, Server

from scorecard.client import PHASES, Answer, post

AT_ONCE = 16
CANCELLED = 0.25
CHANGE_EVERY = 50
SECONDS = 30
ADMIN = "an-admin-key-for-tests"
SHELF = ("sentiment", "negated")
FLAGS = (
    *("--num-gpu-blocks-override", "20"),
    *("--block-size", "32"),
    *("--max-num-batched-tokens", "128"),
    *("--max-num-seqs", "16"),
    "--enable-chunked-prefill",
    *("--cache-bytes", str(4 * 2**20)),
)
"""Little memory: requests are preempted, prompts come in chunks, and caches are full soon."""

OPENINGS = ("The room was", "I bought a kettle and", "This cable", "We stayed", "The staff")
LONG = " ".join(["The room was small but the staff were kind and the food was good."] * 12)


@dataclass
class Question:
    """A greedy request, and what it says alone: token ids for each checkpoint of `mood`."""

    fields: dict
    alone: dict[str, list[int]] = field(default_factory=dict)

    @property
    def moody(self) -> bool:
        return "mood" in self.fields["scorers"]


def questions() -> list[Question]:
    """Requests that differ in every way that guidance can."""
    settings = [
        {"scorers": {"sentiment": 1.0}, "beta": 3.0},
        {"scorers": {"formality": -1.0, "brevity": 0.5}, "beta": 4.0, "k": 10, "mass": 1.0},
        {"scorers": {"brevity": 1.0}, "beta": 2.0, "tail": "mean", "normalize": True},
        {"scorers": {"sentiment": 1.0}, "beta": 0.0},
        {"scorers": {"mood": 1.0}, "beta": 4.0},
        {"scorers": {"mood": 1.0, "brevity": 0.5}, "beta": 2.0, "mass": 0.9},
    ]
    prompts = [*OPENINGS, LONG, f"{LONG} {OPENINGS[1]}"]
    return [
        Question({"prompt": prompt, "temperature": 0, "max_tokens": 8 + 7 * (i % 8), **guidance})
        for i, (prompt, guidance) in enumerate(itertools.product(prompts, settings))
    ]


@dataclass
class Report:
    """What the soak saw."""

    answers: Counter[str] = field(default_factory=Counter)
    """By kind: compared, mismatch, 404, 5xx, cut, slow, malformed, and each phase of leaving."""
    loads: list[int] = field(default_factory=list)
    memory: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Of each process: (requests answered, bytes resident)."""
    names: dict[int, str] = field(default_factory=dict)


class Soak:
    """Drives one server."""

    def __init__(self, server: Server, requests: int, seed: int, warm_up: int = 0) -> None:
        self.server = server
        self.port = httpx.URL(server.url).port
        self.warm_up = warm_up  # further requests at first, when nothing is weighed
        self.random = random.Random(seed)
        self.questions = questions()
        self.report = Report()
        self.checkpoints: dict[int, str] = {}
        """Which checkpoint each version of `mood` is."""
        self.numbers = iter(range(warm_up + requests))
        self.done = 0
        self.changed = asyncio.Event()

    async def run(self) -> Report:
        """All of it."""
        headers = {"Authorization": f"Bearer {ADMIN}"}
        async with httpx.AsyncClient(
            base_url=self.server.url, headers=headers, timeout=SECONDS
        ) as self.admin:
            await self.alone()
            await asyncio.gather(*(self.worker() for _ in range(AT_ONCE)))
        return self.report

    async def change(self, path: str) -> None:
        """Serve another checkpoint as `mood`, every third time by way of none at all."""
        if len(self.report.loads) % 3 == 2:
            answer = await self.admin.delete("/v1/scorers/mood")
            self.report.loads.append(answer.status_code)
        answer = await self.admin.post("/v1/scorers", json={"name": "mood", "path": path})
        self.report.loads.append(answer.status_code)
        if answer.status_code == 200:
            self.checkpoints[answer.json()["version"]] = path

    async def alone(self) -> None:
        """Each question by itself, with each checkpoint that it may meet."""
        for path in SHELF:
            await self.change(path)
            for question in self.questions:
                if question.moody or path == SHELF[0]:
                    answer = await post(self.port, KEY, "/generate", question.fields)
                    [choice] = json.loads(answer.body)["choices"]
                    question.alone[path] = choice["token_ids"]

    async def worker(self) -> None:
        """One client after the other."""
        for number in self.numbers:
            if number and number % CHANGE_EVERY == 0:
                await self.change(SHELF[number // CHANGE_EVERY % len(SHELF)])
            question = self.random.choice(self.questions)
            leave = self.random.choice(PHASES) if self.random.random() < CANCELLED else None
            stream = self.random.random() < 0.5 or leave in PHASES[2:]
            several = self.random.random() < 0.1
            fields = {**question.fields, "stream": stream}
            if several:
                fields |= {"n": 2, "temperature": 1.0}
            try:
                async with asyncio.timeout(SECONDS):
                    answer = await post(self.port, KEY, "/generate", fields, leave)
            except TimeoutError:
                self.report.answers["slow"] += 1
                continue
            for kind in self.judge(question, fields, answer):
                self.report.answers[kind] += 1
            self.done += 1
            if self.done % 20 == 0 and self.done > self.warm_up:
                self.weigh()

    def judge(self, question: Question, fields: dict, answer: Answer) -> Iterator[str]:
        """What is to be said of an answer."""
        if answer.left is not None:
            yield answer.left
            return
        if answer.status == 404 and question.moody:  # between an unload and the next load
            yield "404"
            return
        if answer.status != 200:
            yield "5xx" if answer.status >= 500 else "malformed" if answer.status else "cut"
            return
        if fields["stream"]:
            if not answer.whole:
                yield "cut"
                return
            choices = [c for e in answer.events[:-1] for c in e["choices"]]
            ids = [i for c in choices if c["index"] == 0 for i in c["token_ids"]]
            last = next(c for c in choices if c["index"] == 0 and c["finish_reason"] is not None)
        else:
            last = json.loads(answer.body)["choices"][0]
            ids = last["token_ids"]
        if fields.get("n"):
            yield "sampled"
            return
        yield "compared"
        version = last["guidance"].get("versions", {}).get("mood")
        path = self.checkpoints[version] if version else SHELF[0]
        if ids != question.alone[path] or last["guidance"]["error"] is not None:
            yield "mismatch"

    def weigh(self) -> None:
        """Note what each process holds."""
        root = psutil.Process(self.server.process.pid)
        for process in (root, *root.children(recursive=True)):
            size = process.memory_info().rss
            self.report.memory.setdefault(process.pid, []).append((self.done, size))
            self.report.names.setdefault(process.pid, " ".join(process.cmdline())[:40])
