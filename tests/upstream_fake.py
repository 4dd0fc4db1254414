"""A small OpenAI-compatible upstream for tests: a bigram of pieces, with faults on request.

Its next piece depends on the last two characters of the text. `TOKENS` has one character in three
pieces, as byte-level tokenizers make them.
"""

import json
import math
import random
import time

import httpx

EMOJI = "🙂".encode()
TOKENS = [
    *(word.encode() for word in (" good", " bad", " so", " very", " and", ".", " it", " is", "né")),
    EMOJI[:2],
    EMOJI[2:3],
    EMOJI[3:],
    b"<end>",
]
END = len(TOKENS) - 1
KEY = "upstream-secret-key"
SLEEP_SECONDS = 60.0


def table(context):
    """Probabilities of the next token after some bytes."""
    weights = random.Random(context[-3:]).choices(range(1, 30), k=len(TOKENS))
    weights = [w**2 for w in weights]
    halves = {b"": 0, EMOJI[:2]: 2, EMOJI[:3]: 3}
    partial = next((n for half, n in halves.items() if half and context.endswith(half)), 0)
    for token, piece in ((9, 0), (10, 2), (11, 3)):
        if piece != partial:  # a byte of the character has its place, and no other
            weights[token] = 0
    if partial:
        weights = [w if t == {2: 10, 3: 11}[partial] else 0 for t, w in enumerate(weights)]
    else:
        weights[9] *= 6
        weights[END] = 900 if context.endswith(b".") else weights[END] // 4
    total = sum(weights)
    return [w / total for w in weights]


class Fake:
    """An httpx transport's handler; `faults` are answered first, one a call."""

    def __init__(self, hidden_end=False, top=None):
        self.calls = []
        self.headers = []
        self.faults = []
        self.hidden_end = hidden_end
        self.top = top

    def transport(self):
        return httpx.MockTransport(self)

    async def __call__(self, request):
        body = json.loads(request.content)
        self.calls.append(body)
        self.headers.append(dict(request.headers))
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            if callable(fault):
                return await fault(body)
            return fault
        chat = request.url.path.endswith("chat/completions")
        if not {"logprobs", "top_logprobs"} & set(body):
            return forwarded(request.url.path, body)
        return httpx.Response(200, json=self.answer(body, chat))

    def answer(self, body, chat):
        if chat:
            turns = body["messages"]
            last = turns[-1]
            goes_on = last.get("prefix") or body.get("continue_final_message")
            assert not any("trimtab" in key for key in body)
            assert (last["role"] == "assistant") == bool(goes_on)
            context = last["content"].encode() if goes_on else b"ai"
            top = body["top_logprobs"]
        else:
            context, top = body["prompt"].encode(), body["logprobs"]
        draw, steps, finish = random.Random(len(self.calls)), [], "length"
        for _ in range(body["max_tokens"]):
            p = table(context)
            greedy = body["temperature"] == 0
            token = p.index(max(p)) if greedy else draw.choices(range(len(p)), p)[0]
            if token == END and self.hidden_end:
                finish = "stop"
                break
            steps.append((token, p))
            context += TOKENS[token]
            if token == END:
                finish = "stop"
                break
        show = _chat if chat else _completion
        hidden = {END} if self.hidden_end else ()
        logprobs = show(steps, min(top, self.top or top), hidden)
        text = b"".join(TOKENS[t] for t, _ in steps).decode(errors="replace")
        said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        return {"choices": [{**said, "finish_reason": finish, "logprobs": logprobs}]}


def forwarded(path, body):
    """The answer to a request that is no step of guidance: it says what it got."""
    kind = path.rpartition("/v1/")[2]
    if any(turn.get("role") not in ROLES for turn in body.get("messages", ())):
        return httpx.Response(400, json={"error": {"message": f"odd: {body['messages']}"}})
    if body.get("stream"):
        return httpx.Response(
            200, text=EVENTS, headers={"content-type": "text/event-stream; charset=utf-8"}
        )
    prompts = body.get("prompt")
    count = (len(prompts) if isinstance(prompts, list) else 1) * body.get("n", 1)
    choices = [{"index": i, "text": " it", "finish_reason": "stop"} for i in range(count)]
    said = {"kind": kind, "got": body, "model": body["model"], "choices": choices}
    return httpx.Response(200, json=said)


ROLES = {"system", "user", "assistant", "tool"}
EVENTS = 'event: one\ndata: {"é": 1}\n\ndata: {"two": 2}\n\ndata: [DONE]\n\n'


def ranked(p, top, hidden=()):
    best = sorted(range(len(p)), key=lambda t: -p[t])[:top]
    return [(t, math.log(p[t])) for t in best if p[t] > 0 and t not in hidden]


def _named(token):
    piece = TOKENS[token]
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _completion(steps, top, hidden):
    return {
        "tokens": [_named(t) for t, _ in steps],
        "token_logprobs": [math.log(p[t]) for t, p in steps],
        "top_logprobs": [{_named(t): lp for t, lp in ranked(p, top, hidden)} for _, p in steps],
    }


def _chat(steps, top, hidden):
    def entry(token, logprob):
        text = TOKENS[token].decode(errors="replace")
        return {"token": text, "logprob": logprob, "bytes": list(TOKENS[token])}

    content = [
        {
            **entry(t, math.log(p[t])),
            "top_logprobs": [entry(*pair) for pair in ranked(p, top, hidden)],
        }
        for t, p in steps
    ]
    return {"content": content}


def likes_good(text):
    return float(text.count(" good"))


def likes_emoji(text):
    return float(text.count("🙂"))


def fails_late(text):
    if len(text) > 20:
        raise RuntimeError("planted, with a secret")
    return 0.0


def exits_late(text):
    if len(text) > 20:
        raise SystemExit(7)
    return 0.0


def sleeps_late(text):
    time.sleep(SLEEP_SECONDS if len(text) > 20 else 0)
    return 0.0


def loops_late(text):
    while len(text) > 20:
        pass
    return 0.0


def reads_ids(ids):
    return float(len(ids))
