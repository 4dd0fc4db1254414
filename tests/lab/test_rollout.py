"""Rollouts without an engine: prompts, the journal, kills, half-completed answers, bad input."""

import json
import multiprocessing
import os
import random
import signal
import statistics
import sys
import time
import types
from pathlib import Path

import pytest
import typer
from lab import made_up
from lab.made_up import SAMPLING, TEXTS, MadeUp, count_words, prompts
from typer.testing import CliRunner

from trimtab.errors import TrimtabError
from trimtab.sampling import RolloutSampling, sample_seed
from trimtab_lab.rollouts.journal import Journal
from trimtab_lab.rollouts.prefixes import complete, cut_answers
from trimtab_lab.rollouts.prompts import read
from trimtab_lab.rollouts.run import roll_out
from trimtab_models import demo
from trimtab_models.rewards import RewardError
from trimtab_server.commands.rollout import rollout


@pytest.fixture(scope="module")
def sampler():
    return MadeUp()


def lines(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def by_place(records):
    return sorted(records, key=lambda record: (record["index"], record.get("sample")))


def make(sampler, path, sampling=SAMPLING, reward=count_words, settings=None):
    with Journal(path, settings or {"seed": 0}) as journal:
        roll_out(sampler, prompts(sampler), sampling, reward, journal)
    return lines(path)


def test_prompts_as_text(tmp_path, sampler):
    path = tmp_path / "p.txt"
    path.write_text("How was the cafe?\n\n  \nReview it.\n")
    first, second = read(path, sampler.tokenizer)
    assert first.content == [{"role": "user", "content": "How was the cafe?"}]
    assert first.token_ids == sampler.tokenizer(demo.chat("How was the cafe?")).input_ids
    assert second.content[0]["content"] == "Review it."
    raw = read(path, sampler.tokenizer, raw=True)
    assert raw[0].content == "How was the cafe?"
    assert raw[0].token_ids == sampler.tokenizer("How was the cafe?").input_ids


def test_prompts_as_records(tmp_path, sampler):
    path = tmp_path / "p.jsonl"
    chat = [{"role": "user", "content": "A line\u2028of two."}]
    records = [
        {"prompt": chat, "answer": 42},
        {"prompt": "The cafe was", "completion": "good"},
        {"prompt": "x", "prompt_token_ids": [5, 6]},
    ]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    templated, text, by_ids = read(path, sampler.tokenizer)
    assert templated.content == chat
    assert templated.token_ids == sampler.tokenizer(demo.chat(chat[0]["content"])).input_ids
    assert templated.fields == {"answer": 42}
    assert text.token_ids == sampler.tokenizer("The cafe was").input_ids
    assert by_ids.token_ids == [5, 6]


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"prompt": 3}', '{"prompt": ""}', '{"prompt": [{"role": 1}]}']
)
def test_prompts_that_are_none(tmp_path, sampler, line):
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    with pytest.raises(TrimtabError, match=r"p\.jsonl, line 2: "):
        read(path, sampler.tokenizer)
    path.write_text("\n")
    with pytest.raises(TrimtabError, match="no prompt"):
        read(path, sampler.tokenizer)


def test_seeds_differ():
    seeds = {sample_seed(s, p, i) for s in range(5) for p in range(20) for i in range(20)}
    assert len(seeds) == 5 * 20 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_records(tmp_path, sampler):
    records = make(sampler, tmp_path / "o.jsonl")
    assert len(records) == SAMPLING.n * len(TEXTS)
    for record in records:
        ids = record["completion_token_ids"]
        assert record["prompt"] == TEXTS[record["index"]]
        assert record["completion"] == sampler.tokenizer.decode(ids, skip_special_tokens=True)
        assert len(record["logprobs"]) == len(ids)
        assert record["reward"] == len(record["completion"].split())
    assert len({tuple(record["completion_token_ids"]) for record in records}) == len(records)


@pytest.mark.slow
def test_kills_cost_nothing(tmp_path, sampler):
    """Killed by −9 again and again, the file ends up as if nothing had happened."""
    path, whole = tmp_path / "o.jsonl", make(sampler, tmp_path / "whole.jsonl")
    processes = multiprocessing.get_context("forkserver")
    # What takes seconds to import; `lab` itself is not on the path of the process that forks.
    heavy = ["trimtab_lab.rollouts.run", "trimtab_lab.rollouts.prompts", "trimtab_models.demo"]
    processes.set_forkserver_preload([*heavy, "transformers.models.auto.tokenization_auto"])
    draw = random.Random(3)
    kills = 0
    for _ in range(6):
        before = path.read_bytes().count(b"\n") if path.exists() else 0
        process = processes.Process(target=made_up.run, args=(path, 0.002))
        process.start()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.is_alive():
            if path.exists() and path.read_bytes().count(b"\n") > before:
                break
            time.sleep(draw.random() * 0.05)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        with path.open("ab") as file:  # as a kill inside a write would leave it
            file.write(json.dumps(whole[0]).encode()[: draw.randint(1, 200)])
    assert kills >= 2
    assert 0 < path.read_bytes().count(b"\n") <= len(whole)
    records = make(sampler, path)
    assert by_place(records) == by_place(whole)


def test_only_what_is_missing_is_drawn(tmp_path, sampler):
    path = tmp_path / "o.jsonl"
    whole = make(sampler, path)
    kept = whole[:100]
    path.write_text("".join(json.dumps(record) + "\n" for record in kept))
    before = sampler.drawn
    assert by_place(make(sampler, path)) == by_place(whole)
    assert sampler.drawn - before == len(whole) - 100


def test_other_settings_are_refused(tmp_path, sampler):
    path = tmp_path / "o.jsonl"
    make(sampler, path, settings={"seed": 0, "n": 40})
    content = path.read_bytes()
    with pytest.raises(TrimtabError, match=r"other settings: seed \(was 0\)"):
        make(sampler, path, settings={"seed": 1, "n": 40})
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text('{"index": 0, "sample": 0}\nhalf')
    with pytest.raises(TrimtabError, match="choose another --out"):
        make(sampler, foreign)
    foreign.write_text('{"mine": 1}\n')
    with pytest.raises(TrimtabError, match="line 1: not a record"):
        make(sampler, foreign)
    assert path.read_bytes() == content
    assert foreign.read_text() == '{"mine": 1}\n'


def test_files_of_others_stay(tmp_path):
    path, meta = tmp_path / "o.jsonl", tmp_path / "o.jsonl.meta.json"
    for text in ('{"mine": 1}', "mine", "[]"):
        meta.write_text(text)
        with pytest.raises(TrimtabError, match=r"meta\.json is not of this command"):
            Journal(path, {"seed": 0})
        assert meta.read_text() == text
        assert not path.exists()
    meta.write_text('{"seed": 7}')  # of a file that was removed since
    with Journal(path, {"seed": 0}) as journal:
        journal.append([{"index": 0}])
    content = path.read_bytes()
    for text in ("a letter", "[1", ""):
        path.write_text(text)
        if text:
            with pytest.raises(TrimtabError, match=r"line 1: not a record"):
                Journal(path, {"seed": 0})
            assert path.read_text() == text
    for damage in ("", "{", "[]", "null", '{"seed": 0, "seed": 0}', "[" * 100_000):
        path.write_bytes(content)
        meta.write_text(damage)
        with pytest.raises(TrimtabError, match=r"no o\.jsonl\.meta\.json holds its settings"):
            Journal(path, {"seed": 0})
        assert path.read_bytes() == content


def test_a_record_without_its_place_is_refused(tmp_path):
    path = tmp_path / "o.jsonl"
    with Journal(path, {}) as journal:
        journal.append([{"index": 0}])
    with Journal(path, {}) as journal:
        assert journal.records == [{"index": 0}]
    for line in ('{"index": 0}', '{"index": 0, "sample": "0"}', "[" * 100_000, "null"):
        path.write_text(f'{{"index": 0, "sample": 0}}\n{line}\n')
        with pytest.raises(TrimtabError, match="line 2: not a record"):
            Journal(path, {}, ("index", "sample"))


def test_what_was_never_begun_leaves_nothing(tmp_path):
    with Journal(tmp_path / "o.jsonl", {"seed": 0}):
        assert len(list(tmp_path.iterdir())) == 2
    assert not list(tmp_path.iterdir())
    (tmp_path / "o.jsonl").touch()
    with Journal(tmp_path / "o.jsonl", {"seed": 0}):
        pass
    assert (tmp_path / "o.jsonl").exists(), "an empty file of the user's own stays"


def test_two_writers_are_one_too_many(tmp_path):
    with (
        Journal(tmp_path / "o.jsonl", {}),
        pytest.raises(TrimtabError, match="another process"),
    ):
        Journal(tmp_path / "o.jsonl", {})


def test_a_failing_reward_loses_nothing_written(tmp_path, sampler):
    path, whole = tmp_path / "o.jsonl", make(sampler, tmp_path / "whole.jsonl")
    calls = []

    def fails_later(records):
        calls.append(len(records))
        if len(calls) == 3:
            raise RewardError("the judge is away")
        return count_words(records)

    with pytest.raises(RewardError, match="away"):
        make(sampler, path, reward=fails_later)
    assert len(lines(path)) == sum(calls[:2])
    assert by_place(make(sampler, path)) == by_place(whole)


def test_half_completed_answers(tmp_path, sampler):
    source = make(sampler, tmp_path / "o.jsonl")
    cuts = cut_answers(tmp_path / "o.jsonl", [0.25, 0.5], 30, seed=1)
    assert cuts == cut_answers(tmp_path / "o.jsonl", [0.25, 0.5], 30, seed=1)
    assert len(cuts) == 60
    sampling = RolloutSampling(n=6, max_tokens=20)
    path = tmp_path / "h.jsonl"
    with Journal(path, {}) as journal:
        complete(sampler, cuts, sampling, count_words, journal)
    records = {record["index"]: record for record in lines(path)}
    assert set(records) == set(range(60))
    sources = {tuple(r["completion_token_ids"]): r for r in source}
    for index, cut in enumerate(cuts):
        record, ids = records[index], cut.source["completion_token_ids"]
        kept = max(1, int(record["fraction"] * len(ids)))
        assert record["prefix_token_ids"] == ids[:kept]
        assert 0 < kept < len(ids)
        assert record["reward"] == sources[tuple(ids)]["reward"]
        assert len(record["returns"]) == 6
        assert record["mean"] == pytest.approx(statistics.fmean(record["returns"]))
        deviation = statistics.stdev(record["returns"])
        assert record["standard_error"] == pytest.approx(deviation / 6**0.5)
        words = len(record["prefix"].split())
        assert all(value >= words - 1 for value in record["returns"]), "the whole answer counts"
    kept = path.read_text().split("\n")[:20]
    path.write_text("\n".join(kept) + "\n")
    with Journal(path, {}) as journal:
        complete(sampler, cuts, sampling, count_words, journal)
    assert {record["index"]: record for record in lines(path)} == records


@pytest.fixture
def command(tmp_path, monkeypatch):
    """`trimtab rollout` in this process, with a sampler that needs no engine."""
    import vllm  # noqa: F401  # its logger keeps the stdout of its first import

    offline = types.SimpleNamespace(Sampler=MadeUp, engine_options=lambda flags: {})
    monkeypatch.setitem(sys.modules, "trimtab.adapters.vllm.offline", offline)
    monkeypatch.setattr("trimtab_server.commands.rollout_job.configure_logging", lambda: None)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.chdir(tmp_path)
    name = f"taste_{abs(hash(tmp_path))}"
    Path(f"{name}.py").write_text(
        "def words(prompt, completion): return len(completion.split())\n"
        "def nan(prompt, completion): return float('nan')\n"
        "def breaks(prompt, completion): return {}['x']\n"
    )
    Path("p.txt").write_text("How was the cafe?\n")
    Path("bad.jsonl").write_text("{\n")
    Path("text.jsonl").write_text('{"prompt": "a", "completion": "b", "reward": 1}\n')
    Path("bare.jsonl").write_text('{"prompt_token_ids": [1], "completion_token_ids": [2, 3]}\n')
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
        rollout
    )

    def run(*arguments):
        arguments = [argument.replace("taste:", f"{name}:") for argument in arguments]
        return CliRunner().invoke(app, arguments, catch_exceptions=False)

    return run


def test_the_command(command, tmp_path):
    common = ["demo", "--n", "3", "--max-tokens", "9", "--reward", "taste:words"]
    first = command(*common, "--prompts", "p.txt", "--out", "o.jsonl")
    assert first.exit_code == 0, first.output
    records = lines(tmp_path / "o.jsonl")
    assert [record["sample"] for record in by_place(records)] == [0, 1, 2]
    assert records[0]["prompt"] == [{"role": "user", "content": "How was the cafe?"}]
    assert records[0]["completion"][0]["role"] == "assistant"
    second = command(*common, "--complete", "o.jsonl", "--out", "h.jsonl", "--at", "0.3,0.6")
    assert second.exit_code == 0, second.output
    assert {record["fraction"] for record in lines(tmp_path / "h.jsonl")} == {0.3, 0.6}
    again = command(*common, "--prompts", "p.txt", "--out", "o.jsonl", "--temperature", "1")
    assert again.exit_code == 1
    assert "temperature (was 0.7)" in again.output


PROMPTS = ["--prompts", "p.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --prompts"),
        (["--prompts", "none.txt"], "none.txt"),
        (["--prompts", "bad.jsonl"], "bad.jsonl, line 1: not JSON"),
        (
            ["--complete", "bad.jsonl", "--reward", "taste:words"],
            "bad.jsonl, line 1: not JSON",
        ),
        (
            ["--complete", "text.jsonl", "--reward", "taste:words"],
            "text.jsonl, line 1: not a sampled rollout",
        ),
        (
            ["--complete", "bare.jsonl", "--reward", "taste:words"],
            "bare.jsonl, line 1: there is neither 'reward' nor 'label'",
        ),
        (["--complete", "bad.jsonl"], "needs a --reward"),
        (["--complete", "p.txt", "--reward", "taste:words", "--at", "2"], "--at must be"),
        ([*PROMPTS, "--reward", "nonsense"], "must be module:function"),
        ([*PROMPTS, "--reward", "taste:absent"], "cannot be imported"),
        ([*PROMPTS, "--reward", "taste:nan"], "the reward returned nan"),
        ([*PROMPTS, "--reward", "taste:breaks"], "raised KeyError"),
        ([*PROMPTS, "--beta", "2"], "--beta needs a scorer: --scorer NAME=PATH"),
        ([*PROMPTS, "--beta", "2", "--k", "5"], "--beta, --k need a scorer"),
        ([*PROMPTS, "--scorer", "nonsense"], "must have the form NAME=PATH"),
        ([*PROMPTS, "--scorer", "a=b", "--beta", "1e9"], "beta"),
        ([*PROMPTS, "--out", "no/such/folder/o.jsonl"], "no/such/folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(command, arguments, message):
    out = [] if "--out" in arguments else ["--out", "o.jsonl"]
    done = command("demo", *out, *arguments)
    assert done.exit_code == 1
    said = [line for line in done.stderr.split("\n") if line.startswith("trimtab: ")]
    assert len(said) == 1, done.output
    assert message in said[0]
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("p.txt", "p.txt, line 1: not a record of this command"),
        ("bare.jsonl", "bare.jsonl, line 1: not a record"),
        (".", "is not a file"),
        ("no/such/o.jsonl", "there is no directory"),
        ("p.txt/o.jsonl", "there is no directory"),
        ("/proc/o.jsonl", "nothing can be written into /proc"),
        ("pipe", "pipe is not a file"),
        ("link", "p.txt, line 1: not a record"),
    ],
)
def test_what_is_in_the_way_is_named_before_anything_is_loaded(command, tmp_path, out, message):
    os.mkfifo("pipe")
    Path("link").symlink_to("p.txt")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()}
    done = command("./no-such-model", "--out", out, *PROMPTS, "--reward", "no.such:reward")
    assert done.exit_code == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("trimtab: ")
    assert message in line
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_goes_wrong_before_the_first_answer_leaves_no_file(command, tmp_path):
    assert command("demo", "--out", "o.jsonl", *PROMPTS, "--reward", "nonsense").exit_code == 1
    assert not list(tmp_path.glob("o.jsonl*"))


def test_an_unknown_model(command):
    done = command("./no-such-model", "--out", "o.jsonl", *PROMPTS)
    assert done.exit_code == 1
    assert "no-such-model cannot be loaded" in done.stderr
