"""Rewards: a function, a classifier, a judge with faults."""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from trimtab_models import demo, rewards
from trimtab_models.rewards import RewardError
from trimtab_models.rewards.judge import TEMPLATE, JudgeReward

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Say it."}]
SAID = [{"role": "assistant", "content": "It was lovely."}]


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "taste_for_tests.py").write_text(
        "def both(prompt, completion): return len(prompt) + len(completion) / 100\n"
        "def verify(prompt, completion, record): return completion == record['answer']\n"
        "def breaks(prompt, completion): raise KeyError('no such word')\n"
        "def nan(prompt, completion): return float('nan')\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    yield "taste_for_tests"
    sys.modules.pop("taste_for_tests", None)


def test_function_reads_the_users_words(module):
    reward = rewards.load(f"{module}:both")
    records = [{"prompt": CHAT, "completion": SAID}, {"prompt": "ab", "completion": "c"}]
    assert rewards.label(reward, records) == [7.14, 2.01]


def test_function_with_the_record(module):
    records = [{"prompt": "1+1", "completion": word, "answer": "2"} for word in ("2", "3")]
    assert rewards.label(rewards.load(f"{module}:verify"), records) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "message"), [("breaks", "raised KeyError"), ("nan", "nan"), ("number", "is a int")]
)
def test_functions_that_fail(module, name, message):
    with pytest.raises(RewardError, match=message):
        rewards.label(rewards.load(f"{module}:{name}"), [{"prompt": "a", "completion": "b"}])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nonsense", "must be"),
        ("no_such_module_here:f", "cannot be imported"),
        ("json:no_such_function", "cannot be imported"),
        ("json:dumps,a=b", "no options"),
        ("classifier:/nowhere", "cannot be loaded"),
        ("classifier:/nowhere,colour=red", "no option colour"),
        ("classifier:/nowhere,label", "must be"),
        ("classifier:/nowhere,batch_size=many", "whole number"),
        ("classifier:/nowhere,device=abacus", "that torch has here"),
        ("classifier:/nowhere,device=cuda:99", "that torch has here"),
        ("judge:http://x/v1", "model=NAME"),
        ("judge:ftp://x,model=m", "model=NAME"),
        ("judge:http://x/v1,model=m,retries=many", "judge"),
        ("judge:http://x/v1,model=m,template=/nowhere", "judge"),
        ("judge:http://x/v1,model=m,concurrency=0", "positive"),
    ],
)
def test_bad_specifications(spec, message):
    with pytest.raises(RewardError, match=message):
        rewards.load(spec)


def network(kind, labels, pad):
    torch.manual_seed(labels)
    sizes = {"vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "pad_token_id": pad}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
    names = {0: "bad", 1: "good", 2: "so-so"} if labels == 3 else {0: "LABEL_0"}
    make, config = {
        "bert": (BertForSequenceClassification, BertConfig),
        "llama": (LlamaForSequenceClassification, LlamaConfig),
    }[kind]
    model = make(
        config(**sizes, **heads, id2label=names, label2id={v: k for k, v in names.items()})
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(
    params=[("bert", 3, 0, "pair"), ("llama", 1, None, "chat"), ("llama", 3, 0, "chat")]
)
def classifier(request, tmp_path):
    kind, labels, pad, form = request.param
    network(kind, labels, pad).save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(demo.base())
    if form == "pair":
        tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    return tmp_path, labels, form


def test_classifier_gives_what_transformers_gives(classifier):
    """Each text alone, unpadded, by transformers' own model; the batch has many lengths."""
    path, labels, form = classifier
    words = ["cafe", "lovely", "and", "the", "rude", "station", "awful."]
    records = [
        {
            "prompt": " ".join(words[: 1 + i % 3]),
            "completion": " ".join(words * (1 + i))[: 9 * i + 4],
        }
        for i in (5, 0, 11, 2, 7, 3, 1)
    ]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path)
    expected, lengths = [], []
    for record in records:
        if form == "chat":
            chat = [
                {"role": "user", "content": record["prompt"]},
                {"role": "assistant", "content": record["completion"]},
            ]
            ids = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False)).input_ids
            lengths.append(len(ids))
            inputs = {"input_ids": torch.tensor([ids[-32:]])}
        else:
            record["completion"] = record["completion"][:40]
            inputs = tokenizer(record["prompt"], record["completion"], return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        expected.append(float(logits[0] if labels == 1 else logits.log_softmax(-1)[1]))
    if form == "chat":
        assert max(lengths) > 32, "one text must be too long, and lose its beginning"
    option = "" if labels == 1 else ",label=good"
    reward = rewards.load(f"classifier:{path}{option},batch_size=3")
    assert rewards.label(reward, records) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01, "the texts must differ"


def test_classifier_wants_a_label_it_has(classifier):
    path, labels, _ = classifier
    hint = "leave out label=" if labels == 1 else "choose the one"
    with pytest.raises(RewardError, match=hint):
        rewards.load(f"classifier:{path},label=splendid")


class Judge(BaseHTTPRequestHandler):
    """Faults first, as planned for each question's answer, then the number it asks for."""

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        body = json.loads(self.rfile.read(length))
        question = body["messages"][0]["content"]
        server = self.server
        with server.lock:
            server.keys.add(self.headers["Authorization"])
            server.running += 1
            server.most = max(server.most, server.running)
            times_of = server.times_of[question] = [
                *server.times_of.get(question, []),
                time.monotonic(),
            ]
        try:
            fault = next((f for f in server.faults if f"<{f}>" in question), None)
            self._answer(fault if len(times_of) <= server.times else None, question)
        finally:
            with server.lock:
                server.running -= 1

    def _answer(self, fault, question):
        number = question.split("#")[1]
        if fault == "slow":
            time.sleep(1.0)
        status = {"429": 429, "500": 500, "401": 401}.get(fault, 200)
        content = {"wordy": "I would not say.", "far": "11", "two": "8 or 9"}.get(fault, number)
        text = (
            "<html>"
            if fault == "html"
            else json.dumps({"choices": [{"message": {"content": content}}]})
        )
        try:
            self.send_response(status)
            if fault == "429":
                self.send_header("Retry-After", "1")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:
            pass  # the client has gone

    def log_message(self, *_):
        pass


@pytest.fixture
def judge(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    server.faults = ("429", "500", "slow", "html", "wordy", "far", "two", "401")
    server.lock, server.times_of, server.keys = threading.Lock(), {}, set()
    server.times, server.running, server.most = 1, 0, 0
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("TRIMTAB_JUDGE_KEY", "secret-for-tests")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(server, options=""):
    return f"judge:http://127.0.0.1:{server.server_port}/v1,model=m{options}"


@pytest.mark.slow
def test_judge_outlives_faults(judge):
    faults = ["429", "500", "slow", "html", "wordy", "far", "two", "none"]
    records = [
        {"prompt": f"<{fault}> {{completion}}", "completion": f"#{i + 0.5}#"}
        for i, fault in enumerate(faults)
    ]
    reward = rewards.load(url(judge, ",timeout=0.5,concurrency=3"))
    assert rewards.label(reward, records) == [i + 0.5 for i in range(len(faults))]
    assert 1 < judge.most <= 4  # the slow one's first attempt may still be running
    assert judge.keys == {"Bearer secret-for-tests"}
    tries = {q.split("<")[1].split(">")[0]: times for q, times in judge.times_of.items()}
    assert {fault: len(times) for fault, times in tries.items()} == {
        fault: 1 if fault == "none" else 2 for fault in faults
    }
    assert tries["429"][1] - tries["429"][0] >= 1.0, "Retry-After must be honoured"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "html"])
def test_judge_gives_up(judge, fault):
    judge.times = 99
    with pytest.raises(RewardError, match=r"failed 2 time\(s\)") as message:
        rewards.load(url(judge, ",retries=1"))([{"prompt": f"<{fault}>", "completion": "#3#"}])
    assert "secret" not in str(message.value)
    assert [len(times) for times in judge.times_of.values()] == [2]


def test_judge_that_refuses_is_not_called_again(judge):
    with pytest.raises(RewardError, match="401"):
        rewards.load(url(judge))([{"prompt": "<401>", "completion": "#3#"}])
    assert [len(times) for times in judge.times_of.values()] == [1]


def test_judge_with_a_template_of_its_own(judge, tmp_path):
    (tmp_path / "t.txt").write_text("{completion} answers {prompt}")
    reward = rewards.load(url(judge, f",template={tmp_path / 't.txt'}"))
    assert reward([{"prompt": CHAT, "completion": "#7#"}]) == [7.0]
    assert list(judge.times_of) == ["#7# answers Say it."]
    (tmp_path / "t.txt").write_text("Rate this.")
    with pytest.raises(RewardError, match="must contain"):
        rewards.load(url(judge, f",template={tmp_path / 't.txt'}"))
    assert "{prompt}" in TEMPLATE


def test_judge_needs_no_key(judge, monkeypatch):
    monkeypatch.delenv("TRIMTAB_JUDGE_KEY")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    address = f"http://127.0.0.1:{judge.server_port}/v1"
    assert JudgeReward(address, model="m")([{"prompt": "", "completion": "#3#"}]) == [3.0]
    assert judge.keys == {None}
