"""The judge of pairs, against a stub of an endpoint that likes long answers."""

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from arena_fakes import PROMPTS, TASK, FakeBench, methods
from trimtab_lab.arena import arena, report
from trimtab_lab.arena.grades import EXACT, Turn, converse, grades
from trimtab_lab.arena.judge import compare
from trimtab_lab.arena.methods import METHODS
from trimtab_lab.worlds import WORLDS
from trimtab_models.rewards import RewardError


class Stub(BaseHTTPRequestHandler):
    """1 if the first answer is longer, 2 if the second is, 0 if neither; or what it always says."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][0]["content"]
        if "Conversation:" in question:  # grades: the better, the longer
            self.server.firsts.append(question)
            self.reply(self.server.always or str(len(question.split("Answer:\n")[1].split()[0])))
            return
        first, second = question.split("First answer:\n")[1].split("\n\nSecond answer:\n")
        first, second = len(first), len(second.split("\n\nWhich")[0])
        self.server.firsts.append(first)
        self.reply(self.server.always or str(0 if first == second else 1 if first > second else 2))

    def reply(self, reply):
        answer = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


@pytest.fixture
def stub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    server.firsts, server.always = [], None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def spec(server):
    return f"judge:http://127.0.0.1:{server.server_port}/v1,model=stub,concurrency=1"


def test_wins_are_ours_whatever_the_order(stub):
    ours = ["long answer"] * 12 + ["same"] * 4 + ["x"] * 4
    theirs = ["short"] * 12 + ["same"] * 4 + ["longer"] * 4
    verdict = compare(spec(stub), ["asked"] * 20, ours, theirs)
    assert (verdict.win, verdict.tie, verdict.lose, verdict.n) == (0.6, 0.2, 0.2, 20)
    assert verdict.p == pytest.approx(0.0768, abs=1e-3)  # 12 of 16
    assert len(set(stub.firsts[:12])) == 2, "both orders are shown"


def test_a_judge_that_favours_a_place_finds_about_a_tie(stub):
    stub.always = "1"
    verdict = compare(spec(stub), ["asked"] * 200, ["a"] * 200, ["b"] * 200)
    assert verdict.win == pytest.approx(0.5, abs=0.12)
    assert verdict.p > 0.01


def test_a_reply_that_is_not_a_verdict_is_an_error(stub):
    stub.always = "7"
    with pytest.raises(RewardError, match=r"replied 7; expected 0, 1 or 2"):
        compare(spec(stub), ["asked"], ["a"], ["b"])
    with pytest.raises(RewardError, match="judge:http"):
        compare("operator:add", ["asked"], ["a"], ["b"])


def test_a_report_asks_once(stub, tmp_path):
    bench, task = FakeBench(), replace(TASK, judge=spec(stub))
    base = arena.base_samples(bench, tmp_path / "base-samples.npz")
    arena.climb(bench, methods("base", "vas"), tmp_path / "runs")
    for _ in range(2):
        report.write(task, bench.texts, base, tmp_path, "", {})
        assert len(stub.firsts) == 2 * PROMPTS
    judged = json.loads((tmp_path / "results.json").read_text())["judged"]
    assert judged["vas"] == {"win": 0, "tie": 1, "lose": 0, "p": 1, "n": PROMPTS}
    assert "## The judge" in (tmp_path / "leaderboard.md").read_text()


def test_each_answer_of_two_turns_has_a_grade(stub):
    """The second prompt holds the first answer, and the next request."""
    bench = SimpleNamespace(
        texts=["one?", "two?"],
        prompts=[[1], [2]],
        tokenizer=lambda texts, **_: SimpleNamespace(input_ids=len(texts)),
    )
    bench.tokenizer.eos_token = "|"
    bench.texts_of = lambda method, scaled_beta, n: [["abc"], ["abcdefg"]]
    turns = converse(bench, METHODS["vas"], 2.0)
    assert turns[1].prompts == ["one?abc|two?", "two?abcdefg|one?"]
    assert bench.texts == ["one?", "two?"], "the bench itself is not changed"
    for turn in turns:
        assert grades(spec(stub), turn, TASK.world).tolist() == [3, 7]
    assert any("one?abc|two?" in question for question in stub.firsts)
    stub.always = "0"
    with pytest.raises(RewardError, match="replied 0; expected a grade from 1 to 10"):
        grades(spec(stub), turns[0], TASK.world)
    with pytest.raises(RewardError, match="exact, or judge:http"):
        grades("operator:add", turns[0], TASK.world)


def test_the_exact_reward_is_a_grader_on_the_same_scale():
    world = WORLDS["sums"]
    steps = "2 + 1 + 0 = 0 3 . 0 3"
    turn = Turn(["<|user|>2 + 1<|end|><|assistant|>"] * 2, [steps, steps + " 3"])
    assert grades(EXACT, turn, world).tolist() == [10, 1]
