"""The arena taken up again, and what its report says, on methods whose worth is known."""

import json
from dataclasses import replace

import numpy as np
import pytest

from arena_fakes import PROMPTS, SHARES, TASK, FakeBench, methods
from trimtab.errors import TrimtabError
from trimtab_lab.arena import after_report, arena, claims, prepare, report, values
from trimtab_lab.arena.after import After
from trimtab_lab.arena.board import EXACT_BEST_OF, ORACLE, Board
from trimtab_lab.arena.methods import (
    METHODS,
    QUICK,
    REWARD,
    SUMS,
    TRAININGS,
    heat_map,
    trainings,
)
from trimtab_lab.arena.runs import fingerprint, read, save
from trimtab_lab.arena.task import load
from trimtab_models import data

NAMES = ("base", "pargs", "args", "vas")


def test_a_method_climbs_until_its_kl_has_passed_its_stop(tmp_path):
    bench = FakeBench()
    arena.climb(bench, methods("base", "vas"), tmp_path)
    # KL is (scaled β)²/2, and vas stops above 5 nats.
    assert bench.ran == [("base", 0.0), ("vas", 1.0), ("vas", 2.0), ("vas", 4.0)]


def test_stopped_and_taken_up_again(tmp_path):
    first, second = FakeBench(), FakeBench()
    first.die_at = 3
    with pytest.raises(KeyboardInterrupt):
        arena.climb(first, methods(*NAMES), tmp_path)
    assert len(read(tmp_path)) == 3
    runs = arena.climb(second, methods(*NAMES), tmp_path)
    whole = FakeBench()
    arena.climb(whole, methods(*NAMES), tmp_path / "whole")
    assert first.ran + second.ran == whole.ran
    assert [(run.method, run.scaled_beta) for run in runs] == whole.ran
    nothing = FakeBench()
    arena.climb(nothing, methods(*NAMES), tmp_path)
    assert nothing.ran == []


class Shuffled:
    """Runs three settings at a time, which end in another order than they began."""

    count = 3

    def __init__(self, bench):
        self.bench, self.running, self.most = bench, [], 0

    def submit(self, *setting):
        self.running.append(setting)
        self.most = max(self.most, len(self.running))

    def result(self):
        index, method, scaled_beta = self.running.pop()
        return index, self.bench.run(method, scaled_beta)


def test_settings_that_run_beside_each_other_are_the_same(tmp_path):
    alone, bench = FakeBench(), FakeBench()
    runner = Shuffled(bench)
    whole = arena.climb(alone, methods(*NAMES), tmp_path / "alone")
    runs = arena.climb(bench, methods(*NAMES), tmp_path / "beside", runner)
    settings = [(run.method, run.scaled_beta) for run in runs]
    assert settings == [(run.method, run.scaled_beta) for run in whole] == alone.ran
    assert sorted(bench.ran) == sorted(alone.ran)
    assert bench.ran != alone.ran
    assert runner.most == runner.count
    files = [{path.name for path in (tmp_path / name).iterdir()} for name in ("alone", "beside")]
    assert files[0] == files[1]


def test_other_settings_are_refused_by_name(tmp_path):
    bench = FakeBench()
    arena.climb(bench, methods("base", "vas"), tmp_path)
    changed = FakeBench()
    changed.settings = lambda method, scaled_beta: {**bench.settings(method, scaled_beta), "k": 7}
    with pytest.raises(TrimtabError, match=r"base_@_0\.json .*\(k\).*--out"):
        arena.climb(changed, methods("base"), tmp_path)


def test_a_run_is_the_same_when_read_again(tmp_path):
    bench = FakeBench()
    run = bench.run(METHODS["pargs-greedy"], 2.0)
    save(tmp_path, run)
    [again] = read(tmp_path)
    np.testing.assert_allclose(again.reward("gold"), run.reward("gold"), atol=1e-5)
    np.testing.assert_allclose(again.spent, run.spent)
    assert np.isnan(again.diversity)
    assert [path.name for path in tmp_path.iterdir()] == ["pargs-greedy_@_2.json"]


def test_base_samples_are_kept_and_checked(tmp_path):
    bench, path = FakeBench(), tmp_path / "base-samples.npz"
    drawn = arena.base_samples(bench, path)
    bench.base_samples = None  # not called again
    np.testing.assert_array_equal(arena.base_samples(bench, path)["gold"], drawn["gold"])
    bench.prints = {"base": "another"}
    with pytest.raises(TrimtabError, match="other settings"):
        arena.base_samples(bench, path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole arena of made-up methods: its directory and results."""
    out, bench = tmp_path_factory.mktemp("arena"), FakeBench()
    base = arena.base_samples(bench, out / "base-samples.npz")
    arena.climb(bench, [*methods(*NAMES), *heat_map(METHODS["pargs"])], out / "runs")
    report.write(TASK, bench.texts, base, out, "trimtab arena made-up", {})
    return out, json.loads((out / "results.json").read_text())


def test_efficiencies_are_the_known_shares(finished):
    _, results = finished
    [board] = results["boards"]
    rows = {row["method"]: row for row in board["leaderboard"]}
    for name in NAMES[1:]:
        result = rows[name]["efficiency"]
        assert result["share"] == pytest.approx(SHARES[name], abs=0.12)
        assert result["low"] < SHARES[name] + 0.05
        assert result["high"] > SHARES[name] - 0.05
        assert rows[name]["flops"] == 5
        assert rows[name]["efficiency_at_kl"]["share"] == pytest.approx(SHARES[name], abs=0.12)
        assert rows[name]["efficiency_at_kl"]["kl"] == board["compared_at_kl"]
    listed = [row["method"] for row in board["leaderboard"] if row["method"] in NAMES]
    assert listed == ["vas", "pargs", "args", "base"]
    assert rows["base"]["efficiency"] is None
    assert rows["base"]["tie"] == 1


def test_claims_are_tested_on_all_prompts(finished):
    _, results = finished
    result = {(c["better"], c["worse"], c["compared"]): c for c in results["claims"]}
    claim = result["pargs", "args", "equal KL"]
    assert claim["verdict"] == "reproduced"
    assert claim["n"] == PROMPTS
    assert claim["p_holm"] >= claim["p"]
    # Reward still rises at the largest β of these made-up methods: the paper's fall is not there.
    assert result["pargs", "pargs", "best and last setting"]["verdict"] == "not significant"
    assert not any("fudge" in pair for pair in result), "what was not run is not claimed"


def test_claims_about_tokens_and_ten_answers_read_what_was_measured_after():
    bench = FakeBench()
    runs = [bench.run(METHODS["base"], 0.0)]
    runs += [bench.run(METHODS[name], 2.0) for name in ("pargs", "args", "top-k 10")]
    board, draw = Board("gold", bench.base_samples(), runs, 2.0), np.random.default_rng(3)
    values = {name: draw.normal(i, 0.3, PROMPTS) for i, name in enumerate(("args", "pargs"))}
    after = After({"top-k 10": values["args"], "pargs": values["pargs"]}, values)
    measured = [
        (c["better"], c["worse"], c["compared"], c["verdict"])
        for c in claims.test([board], "made-up", after)
        if c["compared"] in ("diversity of ten answers", "ranks of a good answer")
    ]
    assert measured == [
        ("pargs", "top-k 10", "diversity of ten answers", "reproduced"),
        ("pargs", "args", "ranks of a good answer", "reproduced"),
    ]
    text = "\n".join(after_report.tables(board, after))
    assert text.index("| pargs |") < text.index("| args |"), "the best first"
    assert "− base" in text


def test_wins_count_ties_half():
    bench = FakeBench()
    base, run = bench.run(METHODS["base"], 0.0), bench.run(METHODS["vas"], 1.0)
    gold = np.zeros(np.shape(run.kl))
    gold[:, 1:] = 1.0
    base = replace(base, rewards={"gold": np.zeros(np.shape(base.kl))})
    board = Board("gold", bench.base_samples(), [base, replace(run, rewards={"gold": gold})], 2.0)
    np.testing.assert_allclose(board.win_rate(board.methods["vas"][0]), 0.75 + 0.25 / 2)
    np.testing.assert_allclose(board.win_rate(base), 0.5)


def test_a_share_of_the_answers_is_the_first_of_them(tmp_path):
    path = tmp_path / "data" / "gold-rollouts.jsonl"
    path.parent.mkdir()
    data.write(path, [{"prompt": "p", "completion": str(i), "reward": i} for i in range(8)])
    share = prepare._share(TASK.world, tmp_path, "td-lambda", "gold", 1 / 4)
    assert [record["reward"] for record in data.read(share)] == [0, 1]


def test_a_method_of_one_setting_is_met_at_its_own_kl():
    bench = FakeBench()
    base, first, second = [
        bench.run(METHODS[name], scaled_beta)
        for name, scaled_beta in (("base", 0.0), ("pargs", 1.0), ("pargs", 2.0))
    ]
    samples = bench.base_samples()

    def differences(*runs):
        result = claims.test([Board("gold", samples, [base, *runs], 2.0)], "made-up", After())
        return [claim["difference"] for claim in result if claim["compared"] == "equal KL"]

    once = replace(first, method="top-k 10", scaled_beta=0.0)
    assert differences(first, second, once) == [0]
    worse = replace(once, rewards={"gold": np.asarray(once.rewards["gold"]) - 0.5})
    assert differences(first, second, worse) == [pytest.approx(0.5)]
    assert differences(second, once) == [], "two points have no KL in common"


def test_results_hold_every_prompt(finished):
    out, results = finished
    assert len(results["runs"]) == len(list((out / "runs").iterdir()))
    assert all(len(run["rewards"]["gold"]) == PROMPTS for run in results["runs"])
    assert results["about"]["command"] == "trimtab arena made-up"
    assert results["about"]["packages"]["numpy"] == np.__version__


def test_the_leaderboard_and_the_plots_are_there(finished):
    out, _ = finished
    text = (out / "leaderboard.md").read_text()
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert "| vas | " in text
    assert "nan" not in text
    rows = tables[: tables.index(next(line for line in tables if "claim" in line))]
    assert len({line.count("|") for line in rows}) == 1, "a table's rows are of one width"
    names = {path.name for path in out.glob("*.png")}
    assert names == {"frontier.png", "strengths.png", "cost.png", "wins.png", "heat-map.png"}


def test_equal_kl_is_no_more_than_the_frontier_can_tell():
    bench = FakeBench()
    runs = [bench.run(METHODS["base"], 0.0), bench.run(METHODS["vas"], 2.0)]
    few = {"gold": np.random.default_rng(0).normal(size=(PROMPTS, 30)), "tokens": np.ones(1)}
    board = Board("gold", few, runs, 2.0)
    assert board.kl == board.frontier.limit < 2.0


def test_the_dial_tells_whether_words_fall():
    bench = FakeBench()
    dial = METHODS["dial"]
    runs = [bench.run(dial, scaled_beta) for scaled_beta in (4.0, -4.0, 1.0)]
    test = report.trend(runs)
    text = "\n".join(report._dial(runs, test))
    assert "which fall at every turn" in text
    assert test["p"] < 1e-6
    backwards = [replace(run, scaled_beta=-run.scaled_beta) for run in runs]
    assert report.trend(backwards)["p"] > 0.99
    assert report.trend(runs[:2]) is None
    assert "| words | 9.0 | 7.8 | 7.0 |" in text


def test_better_values_foretell_better_answers_if_they_do():
    """Of methods whose order by error is that by reward, and of one whose order is reversed."""
    bench = FakeBench()
    names = ("vas", "vas-td0", "cd-fudge", "distribution-base", "distribution")
    runs = [bench.run(METHODS["base"], 0.0)]
    for share, name in zip((0.1, 0.3, 0.5, 0.7, 0.9), names, strict=True):
        for scaled_beta in (1.0, 2.0, 4.0):
            run = bench.run(METHODS[name], scaled_beta)
            gold = np.full(np.shape(run.kl), share * scaled_beta)
            runs.append(replace(run, rewards={"gold": gold}))
    board = Board("gold", bench.base_samples(), runs, 1.0)
    mse = {METHODS[name].scorer: 1.0 - i / 10 for i, name in enumerate(names)}
    result = values.correlation(board, mse)
    assert result["rho"] == pytest.approx(-1)
    assert result["p"] == pytest.approx(1 / 120)
    away = values.correlation(board, {name: -error for name, error in mse.items()})
    assert away["rho"] == pytest.approx(1)
    assert away["p"] == pytest.approx(1)
    assert values.correlation(board, {"td-lambda": 1.0}) is None


def test_methods_agree_with_what_trains_and_decodes():
    for method in METHODS.values():
        known = {
            **TRAININGS,
            **trainings("reviews"),
            **trainings("digest"),
            "composed": None,
            REWARD: None,
        }
        assert method.scorer is None or method.scorer in known
        assert method.search is None or method.group == "search"
    references = {ORACLE.format(n) for n in EXACT_BEST_OF}
    assert {claim.better for claim in claims.CLAIMS} <= {*METHODS}
    assert {claim.worse for claim in claims.CLAIMS} <= {*METHODS, *references}
    assert set(QUICK) <= set(METHODS)
    for world, weights in SUMS.items():
        assert sum(weights.values()) == pytest.approx(1)
        assert set(weights) <= set(load(world).world.rewards)


def test_a_sum_is_a_reward_of_its_world():
    world = load("reviews").world
    text = "the great food was lovely , i recommend it"
    parts = [world.rewards[name]("", text) for name in SUMS["reviews"]]
    assert world.rewards["composed"]("", text) == pytest.approx(sum(parts) / 2)


def test_fingerprints_follow_the_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    first = fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    assert fingerprint(tmp_path) not in (first, str(tmp_path))
    assert fingerprint("org/name") == "org/name"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gold: other", "gold must be one of"),
        ("prompts: {test: a}", "train and test"),
        ("methods: [vaas]", "no such method: vaas"),
        ("supports: {}", "supports must hold"),
        ("bins: many", "bins"),
        ("name: digest", "digest is a built-in world"),
        ("scorers: {td-lamda: x}", "no such scorer: td-lamda.*td-lambda"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    right = {
        "name": "mine",
        "base": "x",
        "prompts": {"train": "a.txt", "test": "b.txt"},
        "rewards": {"gold": "m:f"},
        "gold": "gold",
        "supports": {"gold": [0, 1]},
    }
    key, _, _ = text.partition(":")
    lines = [f"{k}: {json.dumps(v)}" for k, v in right.items() if k != key]
    path = tmp_path / "c.yaml"
    path.write_text("\n".join([*lines, text]))
    with pytest.raises(TrimtabError, match=message):
        load(str(path))


def test_an_unknown_world_or_method_is_refused():
    with pytest.raises(TrimtabError, match="reviews"):
        load("nowhere")
    with pytest.raises(TrimtabError, match=r"no such method: x.*pargs"):
        arena.chosen(TASK, FakeBench().scale, ["x"])


@pytest.mark.parametrize("name", ["composition", "dial", "summed-rl", "rewarded-soup"])
def test_a_method_whose_reward_the_world_lacks_is_refused(name):
    scale = FakeBench().scale
    message = rf"made-up does not support {name} .for reviews, digest"
    with pytest.raises(TrimtabError, match=message):
        arena.chosen(TASK, scale, [name, "vas"])
    with pytest.raises(TrimtabError, match=message):
        arena.chosen(replace(TASK, methods=[name]), scale, [])
    reviews = load("reviews")
    assert METHODS[name] in arena.chosen(reviews, scale, [name])
    everything = replace(scale, methods=tuple(METHODS))
    assert METHODS[name] in arena.chosen(reviews, everything, [])
    assert METHODS[name] not in arena.chosen(TASK, everything, [])
