"""How a server ends, with requests in flight, when it is killed or gets a second signal.

A server takes seconds to start; so in the short form of the scorecard, servers whose other tests
are over end in these ways.
"""

import os
import signal
import threading
import time
from dataclasses import dataclass

import httpx
import psutil

from scorecard import full

GUIDED = {"scorers": {"sentiment": 1}, "beta": 2}
SLEEPY = {"scorers": {"sleepy": 1}, "beta": 1, "k": 2, "mass": 1}
CHAT = [{"role": "user", "content": "Write a review of a hotel."}]
LONG = {"max_tokens": 480, "ignore_eos": True}


def slack():
    """Seconds that a busy machine may add to a promise; the long form has the machine to itself."""
    return 1.5 if full() else 1.5 * max(1, os.getloadavg()[0] / os.cpu_count())


def request_body(path, guidance, **more):
    """A request of a route."""
    if path == "/generate":
        return {"prompt": "The room was", **guidance, **more}
    body = {"model": "demo", "guidance": guidance, **more}
    if path == "/v1/completions":
        return {**body, "prompt": "The room was"}
    if path == "/v1/responses":
        body["max_output_tokens"] = body.pop("max_tokens")
        return {**body, "input": "Write a review of a hotel."}
    return {**body, "messages": CHAT}


@dataclass
class Answer:
    """What a request got, and when it had all of it."""

    path: str
    status: int
    text: str
    at: float

    @property
    def ended_with(self) -> str:
        """ "record", "error", or what else there is."""
        text = self.text
        if self.stream:
            *events, done, rest = text.split("\n\n")
            assert (done, rest) == ("data: [DONE]", "") or self.path in TYPED, text[-500:]
            text = "".join(events[-3:]) + done
        if '"error": {' in text or '"error":{' in text or '"type": "error"' in text:
            return "error"
        return "record" if '"kl"' in text else text

    @property
    def stream(self) -> bool:
        return self.text.startswith(("data:", "event:"))


TYPED = ("/v1/responses", "/v1/messages")
"""Their streams end with a typed event; [DONE] comes after an error alone."""


class Requests:
    """Requests in threads."""

    def __init__(self, server):
        self.server, self.answers, self.threads = server, [], []
        self.begun = threading.Semaphore(0)

    def send(self, path, body):
        """Send one; `begun` counts those whose answer has begun, or will come whole."""
        thread = threading.Thread(target=self._send, args=(path, body), daemon=True)
        self.threads.append(thread)
        thread.start()

    def _send(self, path, body):
        pieces, status = [], 0
        try:
            with httpx.stream(
                "POST",
                self.server.url + path,
                json=body,
                headers=self.server.http.headers,
                timeout=120,
            ) as answer:
                status = answer.status_code
                for piece in answer.iter_text():
                    if not pieces:
                        self.begun.release()
                    pieces.append(piece)
        except httpx.HTTPError as error:
            pieces.append(f"broken: {error!r}")
        self.answers.append(Answer(path, status, "".join(pieces), time.monotonic()))

    def wait(self, streams):
        """Until so many streams have begun."""
        for _ in range(streams):
            assert self.begun.acquire(timeout=60)

    def join(self):
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()
        return self.answers


def family(server):
    return psutil.Process(server.process.pid).children(recursive=True)


def gone(processes, seconds):
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def no_traceback(server):
    return "Traceback" not in server.log.read_text()


def by_kill(server):
    """No process of the server outlives it."""
    children = family(server)
    requests = Requests(server)
    requests.send("/generate", request_body("/generate", GUIDED, stream=True, **LONG))
    requests.wait(1)
    server.process.kill()
    assert gone(children, 10)
    requests.join()


def by_a_second_signal(server):
    """It ends at once. It must serve the scorer `sleepy`."""
    children = family(server)
    requests = Requests(server)
    requests.send("/generate", request_body("/generate", SLEEPY, stream=True, **LONG))
    requests.wait(1)
    server.process.terminate()
    time.sleep(0.5)
    assert server.process.poll() is None
    server.process.terminate()
    assert server.process.wait(2 + slack()) == 128 + signal.SIGTERM
    assert gone(children, 5)
    assert no_traceback(server)
