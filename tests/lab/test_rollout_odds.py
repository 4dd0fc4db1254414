"""Measured pairs without an engine: cuts, games, resumption, and what training reads of them."""

import json
import random
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import typer
from lab.made_up import MadeUp, count_words, prompts
from typer.testing import CliRunner

from trimtab.errors import TrimtabError
from trimtab.sampling import RolloutSampling
from trimtab_lab.rollouts.journal import Journal
from trimtab_lab.rollouts.odds import cut_pairs, measure
from trimtab_lab.rollouts.run import roll_out
from trimtab_models import data
from trimtab_models.validation import play
from trimtab_server.commands.rollout import rollout

SAMPLING = RolloutSampling(n=4, max_tokens=20)


@pytest.fixture(scope="module")
def sampler() -> Any:
    return MadeUp()


def lines(path: Path) -> list[dict[str, Any]]:
    return sorted(
        (json.loads(line) for line in path.read_text().split("\n") if line),
        key=lambda record: record["index"],
    )


@pytest.fixture(scope="module")
def rollouts(sampler: Any, tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("rollouts") / "o.jsonl"
    with Journal(path, {}) as journal:
        sampling = RolloutSampling(n=6, max_tokens=12)
        roll_out(sampler, prompts(sampler), sampling, count_words, journal)
    return path


def run(sampler: Any, cuts: Any, path: Path, reward: Any = count_words) -> list[dict[str, Any]]:
    with Journal(path, {"seed": 0}) as journal:
        measure(sampler, cuts, SAMPLING, reward, journal)
    return lines(path)


def test_pairs_of_rollouts_at_drawn_numbers_of_tokens(
    sampler: Any, rollouts: Path, tmp_path: Path
) -> None:
    cuts = cut_pairs(rollouts, sampler.tokenizer, lengths=3, seed=1)
    assert cuts == cut_pairs(rollouts, sampler.tokenizer, lengths=3, seed=1)
    assert cuts != cut_pairs(rollouts, sampler.tokenizer, lengths=3, seed=2)
    records = run(sampler, cuts, tmp_path / "odds.jsonl")
    assert [record["index"] for record in records] == list(range(len(cuts)))
    ended = 0
    for cut, record in zip(cuts, records, strict=True):
        ids = record["chosen_token_ids"], record["rejected_token_ids"]
        longest = max(map(len, ids))
        assert record["score_chosen"] > record["score_rejected"]
        assert record["score_chosen"] == len(record["chosen"].split())
        assert record["generated_tokens"] >= SAMPLING.n
        *points, whole = record["odds"]
        assert whole == [len(ids[0]), len(ids[1]), 1.0]
        assert len(points) == len(record["measured"]) == min(3, longest - 1)
        assert [*map(max, (kept for _, kept in cut.points))] == sorted(
            {max(point[:2]) for point in points}
        )
        for (i, j, odds), one in zip(points, record["measured"], strict=True):
            n = round(one["share"] * longest)
            assert (i, j) == (min(n, len(ids[0])), min(n, len(ids[1])))
            assert 0 < n < longest
            for side, kept in ((0, i), (1, j)):
                over = kept == len(ids[side])
                ended += over
                assert len(one["returns"][side]) == (1 if over else SAMPLING.n)
            games = play(*one["returns"])
            assert (one["wins"], one["ties"], one["losses"]) == games
            assert odds == games.odds
    assert ended, "some shorter sides keep their end"
    pairs = data.pairs(records, sampler.tokenizer)
    assert [list(map(list, pair.odds)) for pair in pairs] == [r["odds"] for r in records]


def test_continuations_begin_with_their_side(sampler: Any, rollouts: Path, tmp_path: Path) -> None:
    judged: list[dict[str, Any]] = []

    def reward(records: Any) -> list[float]:
        judged.extend(records)
        return count_words(records)

    cuts = cut_pairs(rollouts, sampler.tokenizer, shares=[0.5], limit=8)
    assert len(cuts) == 8
    records = run(sampler, cuts, tmp_path / "odds.jsonl", reward)
    for record in records:
        [(i, j, _), _] = record["odds"]
        for side, kept in (("chosen", i), ("rejected", j)):
            ids = record[f"{side}_token_ids"]
            assert kept == max(1, len(ids) // 2)
            begun = [
                one
                for one in judged
                if one["completion_token_ids"][:kept] == ids[:kept]
                and one["prompt"] == record["prompt"]
            ]
            over = kept == len(ids)
            assert len(begun) >= 1 + SAMPLING.n * (not over)  # the whole answer too
    seen = [tuple(one["completion_token_ids"]) for one in judged]
    assert len(set(seen)) > 0.95 * len(seen), "each has a seed of its own"


def test_what_is_missing_is_measured_as_before(
    sampler: Any, rollouts: Path, tmp_path: Path
) -> None:
    path = tmp_path / "odds.jsonl"
    cuts = cut_pairs(rollouts, sampler.tokenizer, lengths=2)
    whole = run(sampler, cuts, path)
    kept = random.Random(0).sample(path.read_text().split("\n")[:-1], 5)
    path.write_text("\n".join(kept) + "\n" + '{"index": 3, "half')
    before = sampler.drawn
    assert run(sampler, cuts, path) == whole
    open_sides = [
        sum(kept[s] < len(cut.answers[s]) for _, kept in cut.points for s in range(2))
        for i, cut in enumerate(cuts)
        if i not in {json.loads(line)["index"] for line in kept}
    ]
    assert sampler.drawn - before == SAMPLING.n * sum(open_sides)


def test_preferences_keep_their_sides(sampler: Any, tmp_path: Path) -> None:
    """Two answers whose order the reward does not share, and a tie, as text and as chats."""
    chat = [{"role": "user", "content": "How was the cafe?"}]

    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    rows = [
        {"prompt": "a b", "chosen": " good", "rejected": " not very good", "place": "cafe"},
        {"prompt": "a b", "chosen": " so good", "rejected": " very bad"},
        {"prompt": chat, "chosen": said("It was good."), "rejected": said("Bad.")},
    ]
    path = tmp_path / "pairs.jsonl"
    data.write(path, rows)

    def reward(records: Any) -> list[float]:
        texts = [r["completion"] for r in records]
        return [float(len((t if isinstance(t, str) else t[0]["content"]).split())) for t in texts]

    cuts = cut_pairs(path, sampler.tokenizer, shares=[0.5])
    records = run(sampler, cuts, tmp_path / "odds.jsonl", reward)
    for record, row in zip(records, rows, strict=True):
        assert [record[name] for name in row] == list(row.values())
    assert [record["odds"][-1][2] for record in records] == [0.0, 0.5, 1.0]
    scores = [(record["score_chosen"], record["score_rejected"]) for record in records]
    assert scores == [(1, 3), (2, 2), (3, 1)]
    assert len(data.pairs(records, sampler.tokenizer)) == 3, "neither a tie nor an order is refused"


def test_what_cannot_be_cut_says_so(sampler: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    for rows, message in (
        ([{"chosen": "ab", "rejected": "ac"}], "line 1: there is no 'prompt' beside"),
        ([{"prompt": "a", "chosen": "b"}], "there is no field 'rejected'"),
        ([{"prompt": "a", "chosen": "b", "rejected": "b"}], "are the same"),
        ([{"prompt": "a", "completion": "b"}], "neither 'reward' nor 'label'"),
        ([{"prompt": "a", "completion": "b", "reward": 1}] * 2, "2 rollouts of different rewards"),
    ):
        data.write(path, rows)
        with pytest.raises(ValueError, match=message):
            cut_pairs(path, sampler.tokenizer, shares=[0.5])
    ids = {"prompt_token_ids": [1], "chosen_token_ids": [2], "rejected_token_ids": [3]}
    data.write(path, [{"prompt": "a", "chosen": "b", "rejected": "c", **ids}])
    with pytest.raises(TrimtabError, match="no pair with an answer of two tokens"):
        cut_pairs(path, sampler.tokenizer, lengths=4)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: Any) -> Any:
    """`trimtab rollout` in this process, with a sampler that needs no engine."""
    import vllm  # noqa: F401  # its logger keeps the stdout of its first import

    offline = types.SimpleNamespace(Sampler=MadeUp, engine_options=lambda flags: {})
    monkeypatch.setitem(sys.modules, "trimtab.adapters.vllm.offline", offline)
    monkeypatch.setattr("trimtab_server.commands.rollout_job.configure_logging", lambda: None)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.chdir(tmp_path)
    name = f"measured_{abs(hash(tmp_path))}"
    Path(f"{name}.py").write_text("def words(prompt, completion): return len(completion.split())\n")
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
        rollout
    )

    def call(*arguments: str) -> Any:
        common = ["--reward", f"{name}:words", "--max-tokens", "20", "--n", "2"]
        return CliRunner().invoke(app, ["demo", *common, *arguments])

    return call


def test_the_command(command: Any, rollouts: Path, tmp_path: Path) -> None:
    source = ["--complete", str(rollouts)]
    done = command(*source, "--odds", "--lengths", "2", "--limit", "4", "--out", "o.jsonl")
    assert done.exit_code == 0, done.output
    assert [len(record["odds"]) for record in lines(tmp_path / "o.jsonl")] == [3] * 4
    content = (tmp_path / "o.jsonl").read_bytes()
    again = command(*source, "--odds", "--lengths", "2", "--limit", "4", "--out", "o.jsonl")
    assert (again.exit_code, (tmp_path / "o.jsonl").read_bytes()) == (0, content)
    other = command(*source, "--odds", "--lengths", "3", "--limit", "4", "--out", "o.jsonl")
    assert other.exit_code == 1
    assert "lengths (was 2)" in other.output
    shares = command(*source, "--odds", "--at", "0.25,0.75", "--limit", "3", "--out", "s.jsonl")
    assert shares.exit_code == 0, shares.output
    assert {one["share"] for r in lines(tmp_path / "s.jsonl") for one in r["measured"]} <= {
        0.25,
        0.75,
    }
    Path("p.txt").write_text("x\n")
    for arguments, message in (
        (["--prompts", "p.txt", "--odds"], "--odds needs --complete FILE"),
        ([*source, "--lengths", "3"], "--lengths needs --odds"),
        ([*source, "--odds", "--max-tokens", "4"], "--max-tokens counts whole answers"),
    ):
        refused = command(*arguments, "--out", "x.jsonl")
        assert refused.exit_code == 1
        assert message in refused.stderr
