"""One conversation, one reading: what a scorer gets does not depend on the route; no engine."""

import json
import warnings
from types import SimpleNamespace

import pytest

from trimtab.engine import Version
from trimtab.scoring.text import PromptContext, template
from trimtab.scoring.turns import turns

pytestmark = pytest.mark.scorecard(letter="B")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # vLLM's import warns of its own code
    from vllm.entrypoints.openai.responses.protocol import ResponsesResponse

    from trimtab.adapters.vllm.search import carried, read_context
    from trimtab_server.vllm import rpc
    from trimtab_server.vllm.guided_routes import GUIDED, conversations
    from trimtab_server.vllm.middleware import GuidanceMiddleware
    from trimtab_server.vllm.records import EXCHANGE

PARTS = [{"type": "text", "text": "A "}, {"type": "text", "text": "b."}]
INPUTS = [{"type": "input_text", "text": "A "}, {"type": "input_text", "text": "b."}]
ARGUMENTS = {"city": "Ulm", "days": 2}
CALL = {"type": "function", "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)}}
EXPECTED_CALL = {"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}


def user(content):
    return {"role": "user", "content": content}


def system(content):
    return {"role": "system", "content": content}


SAME = {
    "text": (
        [user("Hi.")],
        [user("Hi.")],
        {"messages": [user("Hi.")]},
        {"input": "Hi."},
    ),
    "system": (
        [system("Be kind."), user("Hi.")],
        [system("Be kind."), user("Hi.")],
        {"system": "Be kind.", "messages": [user("Hi.")]},
        {"instructions": "Be kind.", "input": "Hi."},
    ),
    "system in parts, or by a developer": (
        [system("A b."), user("Hi.")],
        [{"role": "developer", "content": PARTS}, user("Hi.")],
        {"system": PARTS, "messages": [user("Hi.")]},
        {"input": [{"role": "developer", "content": INPUTS}, user("Hi.")]},
    ),
    "system among the messages": (
        [system("Be kind."), user("Hi.")],
        [system("Be kind."), user("Hi.")],
        {"messages": [system("Be kind."), user("Hi.")]},
        {"input": [system("Be kind."), {"type": "message", **user("Hi.")}]},
    ),
    "parts": (
        [user("A b."), {"role": "assistant", "content": "C."}, user("A b.")],
        [user(PARTS), {"role": "assistant", "content": "C."}, user(PARTS)],
        {"messages": [
            user(PARTS), {"role": "assistant", "content": [{"type": "text", "text": "C."}]},
            user(PARTS)]},
        {"input": [user(INPUTS), {"role": "assistant", "content": "C."}, user(INPUTS)]},
    ),
    "tools": (
        [
            user("Weather?"),
            {"role": "assistant", "content": "", "tool_calls": [EXPECTED_CALL]},
            {"role": "tool", "content": "sunny\nwarm"},
        ],
        [
            user("Weather?"),
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", **CALL}]},
            {"role": "tool", "tool_call_id": "c1", "content": [
                {"type": "text", "text": "sunny"}, {"type": "text", "text": "warm"}]},
        ],
        {
            "messages": [
                user("Weather?"),
                {"role": "assistant", "content": [
                    {"type": "tool_use", "id": "c1", "name": "weather", "input": ARGUMENTS}]},
                user([{"type": "tool_result", "tool_use_id": "c1", "content": [
                    {"type": "text", "text": "sunny"}, {"type": "text", "text": "warm"}]}]),
            ]
        },
        {
            "input": [
                user("Weather?"),
                {"type": "function_call", "call_id": "c1", "name": "weather",
                 "arguments": json.dumps(ARGUMENTS)},
                {"type": "function_call_output", "call_id": "c1", "output": "sunny\nwarm"},
            ]
        },
    ),
}  # fmt: skip
ODD = [
    [1],
    ["x"],
    [None],
    [[]],
    [{}],
    [{"role": 5, "content": "x"}],
    [{"role": None}],
    [user(["text"])],
    [user([1])],
    [user([None, {"text": 5}, {"text": None}, {}])],
    [user(5)],
    [user({"text": "x"})],
    [user(None)],
    [{"role": "assistant", "tool_calls": [1, {}, {"function": 5}, {"function": {}}]}],
    [{"role": "assistant", "tool_calls": {"function": 5}}],
    [{"role": "assistant", "tool_calls": [{"function": {"name": 1, "arguments": "[" * 9999}}]}],
    {},
    "x",
    5,
    None,
    [],
]


def read(path, fields, state=None):
    return conversations(GUIDED[path], fields, state)


@pytest.mark.parametrize("case", SAME)
def test_the_same_on_all_routes(case):
    expected, chat, anthropic, responses = SAME[case]
    base = {"model": "m", "max_tokens": 5, "guidance": {}}
    assert read("/v1/chat/completions", {**base, "messages": chat}) == [expected]
    assert read("/invocations", {**base, "messages": chat}) == [expected]
    batch = {**base, "messages": [chat, [user("x")], chat]}
    assert read("/v1/chat/completions/batch", batch) == [expected, [user("x")], expected]
    assert read("/v1/messages", {**base, **anthropic}) == [expected]
    assert read("/v1/responses", {**base, **responses}) == [expected]


def test_an_answer_may_go_on_from_the_last_turn():
    begun = {"role": "assistant", "content": "Well, "}
    expected = [[user("Hi."), {**begun, "open": True}]]
    chat = {"messages": [user("Hi."), begun], "continue_final_message": True}
    chat |= {"add_generation_prompt": False}
    assert read("/v1/chat/completions", chat) == read("/invocations", chat) == expected
    batch = {**chat, "messages": [chat["messages"]] * 2}
    assert read("/v1/chat/completions/batch", batch) == expected * 2
    items = {"input": [user("Hi."), {"type": "message", "status": "incomplete", **begun}]}
    assert read("/v1/responses", items) == expected
    chat["continue_final_message"] = False
    assert read("/v1/chat/completions", chat) == [[user("Hi."), begun]]


def test_a_completion_is_no_conversation():
    fields = {"model": "m", "prompt": "x", "messages": [user("not read there")]}
    assert read("/v1/completions", fields) == []
    assert read("/inference/v1/generate", {**fields, "sampling_params": {}}) == []
    assert read("/invocations", {"model": "m", "prompt": "x", "messages": [1]}) == []


def test_an_earlier_response_goes_before():
    """As vLLM has it: what was said, but not the instructions."""
    said = {"type": "output_text", "text": "Hello.", "annotations": []}
    item = {"type": "message", "id": "m1", "role": "assistant", "status": "completed"}
    kept = {"id": "r1", "object": "response", "created_at": 0, "model": "m", "tools": []}
    kept |= {"parallel_tool_calls": True, "tool_choice": "auto", "status": "completed"}
    kept |= {"temperature": 1, "top_p": 1, "background": False, "max_output_tokens": 5}
    kept |= {"service_tier": "auto", "truncation": "disabled", "top_logprobs": 0}
    response = ResponsesResponse.model_validate({**kept, "output": [{**item, "content": [said]}]})
    before = [system("Be rude."), user("Hi.")]
    serving = SimpleNamespace(response_store={"r1": response}, msg_store={"r1": before})
    state = SimpleNamespace(openai_serving_responses=serving)
    fields = {"input": "And?", "instructions": "Be kind.", "previous_response_id": "r1"}
    history = [user("Hi."), {"role": "assistant", "content": "Hello."}, user("And?")]
    assert read("/v1/responses", fields, state) == [[system("Be kind."), *history]]
    fields["previous_response_id"] = "unknown"  # which vLLM refuses
    assert read("/v1/responses", fields, state) == [[system("Be kind."), user("And?")]]


@pytest.mark.parametrize("messages", ODD)
def test_odd_messages_are_left_to_the_route(messages):
    """Whatever comes of them is a conversation that can travel, or none."""
    result = [turns(messages)]
    for path in GUIDED:
        for name in ("messages", "input", "system", "instructions"):
            fields = {"model": "m", "max_tokens": 5, "messages": [user("x")], name: messages}
            result += read(path, fields)
    for conversation in result:
        assert conversation is None or conversation
        assert read_context(carried(PromptContext(turns=conversation))) == PromptContext(
            turns=conversation
        )


def test_a_template_gets_tool_calls_as_transformers_has_them():
    class Tokenizer:
        chat_template = "x"

        def apply_chat_template(self, messages, **options):
            return "".join(
                call["function"]["arguments"]["city"] for call in messages[1]["tool_calls"]
            )

    assert template(Tokenizer())(turns(SAME["tools"][1])) == "Ulm"


@pytest.mark.parametrize("refusal", [[], ["s", "No system turn, please"]])
@pytest.mark.parametrize("several", [False, True])
async def test_templates_read_conversations_before_the_route(monkeypatch, refusal, several):
    calls, reached = [], []

    async def call(engine, method, *arguments):
        calls.append((method, *arguments))
        return [None, refusal]  # of two ranks

    monkeypatch.setattr(rpc, "call", call)

    async def route(scope, receive, send):
        exchange = EXCHANGE.get()
        for _ in range(1 + several):
            reached.append(read_context(exchange.carried).turns)
            exchange.calls.append({})
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    messages = [[system("A"), user("B")], [user("C")]]
    fields = {"messages": messages if several else messages[0], "guidance": {}}
    sent = []

    async def receive():
        return {"type": "http.request", "body": json.dumps(fields).encode()}

    async def send(message):
        sent.append(message)

    served = {"s": Version("s", 3, "text", "chat"), "t": Version("t", 1, "head")}
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions"}
    scope["path"] += "/batch" if several else ""
    scope["headers"] = [(b"content-type", b"application/json")]
    scope["app"] = SimpleNamespace(
        state=SimpleNamespace(trimtab=SimpleNamespace(engine=SimpleNamespace(client=None)))
    )
    await GuidanceMiddleware(route, served, None)(scope, receive, send)
    read = messages if several else messages[:1]
    assert calls == [("trimtab_refusal", ["s@3"], read)]
    if refusal:
        assert (sent[0]["status"], reached) == (400, [])
        error = json.loads(sent[1]["body"])["error"]
        assert "scorer 's' cannot read this conversation" in error["message"]
        assert "(No system turn, please)" in error["message"]
    else:
        assert (sent[0]["status"], reached) == (204, read)
    assert all(version.users == 0 for version in served.values())
