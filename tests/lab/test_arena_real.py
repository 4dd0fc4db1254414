"""The tasks of a real base: what they are, and how they compare with best-of-N, without it."""

import importlib
import json
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import environment, json_lines

from arena_fakes import PROMPTS, SCALE, TASK, FakeBench, methods
from trimtab.params import GuidanceParams
from trimtab.sampling import Completion
from trimtab.scorers.function import _check_arguments
from trimtab.search import ScoredSequence
from trimtab_lab.arena import (
    against,
    arena,
    claims,
    picture,
    plots,
    prepare,
    real,
    report,
    scale,
    task,
)
from trimtab_lab.arena.after import After
from trimtab_lab.arena.bench import Bench
from trimtab_lab.arena.board import Board
from trimtab_lab.arena.methods import METHODS, REAL, REAL_FULL, REAL_QUICK, REWARD, TRAININGS
from trimtab_lab.arena.runs import save
from trimtab_lab.arena.stats import at_kl, interval_at_kl
from trimtab_lab.worlds import WORLDS, build
from trimtab_models import data
from trimtab_models.drawing import Chart
from trimtab_models.smollm2 import instructions, prompts, rewards, unfinished
from trimtab_models.training.config import TrainConfig

HERE = Path(__file__).parent
ROLLOUTS = {"rollout_prompts": 3, "completions": 2, "seed": 0}


@pytest.mark.parametrize("name", REAL)
def test_a_task_is_steered_by_a_reward_of_its_world(name):
    made = task.load(name)
    spec = made.scorers[REWARD]
    assert spec["family"] == "function"
    module, _, function = spec["path"].partition(":")
    steers = getattr(importlib.import_module(module), function)
    _check_arguments(spec["path"], steers, spec["reads"])
    assert made.world.gold in made.world.rewards
    assert set(made.world.supports) == set(made.world.bins) == set(made.world.rewards)
    for prompt in made.world.prompts("test", 12, 0):
        for text in ("", "I am glad to help you with that.", "- No, I will not. - Never."):
            for reward, (low, high) in made.world.supports.items():
                assert low <= made.world.rewards[reward](prompt, text) <= high


def test_what_steers_is_what_judges():
    everyday = WORLDS["everyday"]
    assert everyday.rewards[everyday.gold] is rewards.kindness
    assert task.STEERS["everyday"] == ("trimtab_models.smollm2.rewards:kindness", "pair")
    instructed = WORLDS["instructions"]
    assert instructed.rewards[instructed.gold] is instructions.success
    for prompt in instructed.prompts("test", 12, 0):
        for text in ("", "I am glad to help you with that.", "1. No.\n2. I will not.\n3. Never."):
            ended = unfinished.promise(prompt + text + unfinished.END)
            assert ended == instructions.success(prompt, text)


def test_prompts_are_rendered_for_the_base():
    [text] = WORLDS["everyday"].prompts("test", 1, 0)
    [request] = prompts.prompts("test", 1, 0)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        f"<|im_end|>\n<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert len(WORLDS["everyday"].prompts("test", 48, 0)) == 48
    assert not set(WORLDS["everyday"].prompts("train", 400, 0)) & {text}


@pytest.mark.parametrize("name", REAL)
def test_a_real_world_has_methods_of_its_own(name):
    made = task.load(name)
    for quick, wanted in ((True, REAL_QUICK), (False, REAL_FULL)):
        chosen = arena.chosen(made, scale.of(made.world, quick), ())
        assert [method.name for method in chosen] == list(wanted)
    assert {METHODS[one].scorer for one in REAL_QUICK} == {None, REWARD}, "no training"
    assert {"probe", "vas", "pargs", "fudge", "soft-value"} <= set(REAL_FULL)
    trained = {METHODS[one].scorer for one in REAL_FULL} - {None, REWARD}
    assert trained <= set(TRAININGS)
    assert len(REAL_FULL) >= 14
    reviews = task.load("reviews")
    others = {method.name for method in arena.chosen(reviews, scale.FULL, ())}
    assert not others & {one for one, method in METHODS.items() if method.worlds == REAL}


def test_the_default_is_that_of_a_request():
    method, default = METHODS["reward-default"], GuidanceParams()
    assert (method.k, method.mass, method.tail) == (default.k, default.mass, default.tail)


@pytest.mark.parametrize("name", REAL)
def test_a_scorer_of_a_real_world_is_a_probe_by_default(name, tmp_path, monkeypatch):
    """As `trimtab train` makes one, but for its objective's options and numbers of layers."""
    made, configs = task.load(name), {}
    monkeypatch.setattr(prepare, "load", lambda spec: made)
    monkeypatch.setattr(build, "build_base", lambda world, folder: tmp_path)
    monkeypatch.setattr(build, "training_data", lambda *arguments: tmp_path)
    monkeypatch.setattr(build, "run", lambda config: configs.update({config.out.name: config}))
    names = dict.fromkeys(METHODS[one].scorer for one in (*REAL_FULL, "value-mean"))
    trained = [one for one in names if one not in (None, REWARD)]
    for one in trained:
        prepare.train(name, tmp_path, scale.REAL_SCALE, one)
    layers = configs.pop("td-lambda-layers")
    assert (layers.layers, layers.probe, layers.epochs) == (6, None, 4)
    assert len(configs) == len(trained) - 1 >= 9
    for one, config in configs.items():
        objective = TRAININGS[one].objective
        default = TrainConfig(base="b", data="d", out="o", objective=objective, probe={})
        for field in ("probe", "epochs", "learning_rate", "layers"):
            assert getattr(config, field) == getattr(default, field), (one, field)
    assert configs["ilql"].options == TRAININGS["ilql"].settings["options"]
    support = configs["probe-distribution"].options["support"]
    assert support == list(made.world.supports[made.world.gold])


def test_what_a_cut_tail_costs_does_not_end_a_ladder_on_a_real_base(tmp_path):
    def climbed(is_real):
        bench = FakeBench()
        bench.task = replace(TASK, world=replace(TASK.world, real=is_real))
        own = bench.run

        def costly(method, scaled_beta):
            made = own(method, scaled_beta)
            dear = np.asarray(made.kl) + 8.0
            return replace(made, kl=dear, kl_tail=np.full(dear.shape, 8.0))

        bench.run = costly
        done = arena.climb(bench, methods("vas-cut"), tmp_path / str(is_real))
        return [one.scaled_beta for one in done]

    assert climbed(False) == [1.0]
    assert climbed(True) == [1.0, 2.0, 4.0]


def test_a_base_is_fetched_when_it_is_needed(tmp_path):
    calls = []
    world = replace(WORLDS["everyday"], base=lambda: calls.append(1) or tmp_path)
    assert not calls
    assert build.build_base(world, tmp_path / "out") == tmp_path
    assert calls == [1]


def board(*runs, samples=400, kl=1.0, **options):
    bench = FakeBench()
    gold = np.random.default_rng(0).normal(size=(PROMPTS, samples))
    base = bench.run(METHODS["base"], 0.0)
    return Board(
        "gold", {"gold": gold, "tokens": gold}, [base, *runs], kl, **{"real": True, **options}
    )


def run(name, scaled_beta, reward, kl):
    made = FakeBench().run(METHODS[name], scaled_beta)
    shape = np.shape(made.kl)
    return replace(
        made, rewards={"gold": np.full(shape, float(reward))}, kl=np.full(shape, float(kl))
    )


def test_a_method_that_cuts_the_tail_does_not_begin_at_the_base():
    cut = [run("reward-pargs", 0.01, 0.1, 6.0), run("reward-pargs", 4.0, 2.0, 9.0)]
    kept = [run("reward-mean", 2.0, 0.5, 0.5), run("reward-mean", 4.0, 1.5, 2.0)]
    made = board(*cut, *kept)
    rows = {row.method: row for row in made.rows}
    assert rows["reward-pargs"].at_kl is None, "no setting of it spends one nat"
    share = (1 - np.sqrt(0.5)) / (np.sqrt(2) - np.sqrt(0.5))
    assert rows["reward-mean"].at_kl.mean == pytest.approx(0.5 + share)
    assert next(row.method for row in made.rows) == "reward-mean"
    made_up = {row.method: row for row in board(*cut, real=False).rows}
    assert made_up["reward-pargs"].at_kl is not None


def test_a_plot_shows_each_setting_and_begins_at_the_base_where_a_method_does():
    cut = [run("reward-pargs", 0.01, 0.1, 6.0), run("reward-pargs", 4.0, 2.0, 7.0)]
    made = board(*cut, run("reward-mean", 2.0, 0.5, 0.5), run("vas-cut", 2.0, 0.5, 11.0))
    panel = Chart().panels[0]
    plots.frontier(panel, picture.of(made))
    axes = panel.axes
    drawn = {line.get_label(): np.round(line.get_xydata(), 6).tolist() for line in axes.lines}
    assert drawn["reward-pargs"] == [[6, 0.1], [7, 2]]
    assert drawn["reward-mean"] == [[0, round(made.base_estimate.mean, 6)], [0.5, 0.5]]
    assert 7 < axes.get_xlim()[1] < 11
    assert "vas-cut" not in drawn, "it is beyond the picture"


def test_a_real_board_compares_at_its_kl_whatever_the_frontier_tells():
    assert board(samples=30, kl=1.5).kl == 1.5
    assert board(samples=30, kl=1.5, real=False).kl < 1.5


def test_best_of_n_at_a_kl_is_read_between_two_n():
    samples = np.random.default_rng(1).normal(size=(3, 8))

    def brute(n):
        return np.array([np.mean([max(c) for c in combinations(row, n)]) for row in samples])

    def nats(n):
        return np.log(n) - (n - 1) / n

    np.testing.assert_allclose(against.best_at_kl(samples, nats(3)), brute(3))
    np.testing.assert_allclose(against.best_at_kl(samples, 0.0), samples.mean(1))
    middle = ((np.sqrt(nats(2)) + np.sqrt(nats(3))) / 2) ** 2
    np.testing.assert_allclose(against.best_at_kl(samples, middle), (brute(2) + brute(3)) / 2)
    assert against.best_at_kl(samples, nats(4) + 0.01) is None, "beyond half of the answers"


def test_a_method_is_worth_the_n_that_has_its_reward():
    base = FakeBench().run(METHODS["base"], 0.0)
    # The best of 5 normal rewards is 1.163 in the mean, of 4 it is 1.029, of 6 it is 1.267.
    five = replace(run("reward-mean", 2.0, 1.10, 1.0), flops=3 * base.flops)
    [row] = against.compare(board(five))
    assert row.worth == 5
    assert row.n == 3
    assert row.equal_flops.difference == pytest.approx(1.10 - 0.846, abs=0.05)
    [better] = against.compare(board(replace(five, rewards={"gold": np.full((PROMPTS, 4), 9.0)})))
    assert better.worth is None
    assert "more than 200" in "\n".join(against.table(board(), [better]))


def test_instructions_are_compared_with_best_of_4_up_to_3_nats():
    """At the best setting of at most 3 nats, whatever a dearer one reaches."""
    settings = [(2.0, 0.5, 1.0), (4.0, 1.2, 3.0), (8.0, 9.0, 3.1)]
    made = board(*(run("reward-default", *one) for one in settings))
    rows = {row["worse"]: row for row in claims.test([made], "instructions", After())}
    oracle = rows["best-of-4 by the reward itself"]
    assert oracle["difference"] == pytest.approx(1.2 - 1.029, abs=0.05)
    assert oracle["compared"] == rows["base"]["compared"] == "best up to 3 nats"
    base = made.base.reward("gold").mean()
    assert rows["base"]["difference"] == pytest.approx(1.2 - 1.5 * base)
    assert not claims.test([board(run("reward-default", 2.0, 0.5, 3.1))], "instructions", After())
    few = board(*(run("reward-default", *one) for one in settings), samples=6)
    assert [row["worse"] for row in claims.test([few], "instructions", After())] == ["base"]


def test_an_interval_holds_the_error_of_reward_and_of_kl():
    """Of a line reward = √KL, on which a setting's place does not matter, and of a flat one."""
    draw = np.random.default_rng(2)
    zero = np.zeros(200)
    noise = draw.normal(0, 0.5, 200)
    points = [(zero + noise, zero), (zero + 2 + noise, zero + 4.0)]
    low, high = interval_at_kl(points, 1.0)
    assert low < at_kl(points, 1.0).mean() < high
    assert high - low == pytest.approx(2 * 1.96 * noise.std() / np.sqrt(200), rel=0.15)
    sure = [(zero, zero), (zero + 2, draw.exponential(4.0, 200))]
    low, high = interval_at_kl(sure, 1.0)
    assert high - low > 0.05, "the rewards are exact, the place of one nat is not"
    exact = [(zero, zero), (zero + 2, zero + 4.0)]
    assert interval_at_kl(exact, 1.0) == pytest.approx((1.0, 1.0))


def test_a_report_of_a_real_world(tmp_path):
    bench = FakeBench()
    made = replace(TASK, world=replace(TASK.world, real=True))
    base = arena.base_samples(bench, tmp_path / "base-samples.npz")
    names = ("base", "top-k 10", "reward-mean", "vas", "best-of-4")
    runs = arena.climb(bench, methods(*names), tmp_path / "runs")
    for one in runs:
        learned_reward = {"td-lambda": one.scaled_beta} if one.method in ("base", "vas") else {}
        save(tmp_path / "runs", replace(one, facts={"learned": learned_reward}))
    report.write(made, bench.texts, base, tmp_path, "trimtab arena made-up", {})
    text = (tmp_path / "leaderboard.md").read_text()
    assert "nan" not in text
    lines = [line for line in text.splitlines() if line.startswith("| vas | ")]
    learned = [line for line in lines if line.count("|") == 6]
    assert [float(line.split("|")[4]) for line in learned] == [0, *SCALE.ladder[:3]]
    results = json.loads((tmp_path / "results.json").read_text())
    rows = {row["method"]: row for row in results["against_best_of_n"]}
    assert set(rows) == set(names) - {"base"}
    # vas gains 0.9·√2 at one nat, the best of 6.3 normal rewards 1.29, and reward-mean nothing.
    assert rows["vas"]["equal_kl"]["difference"] == pytest.approx(0.9 * 2**0.5 - 1.29, abs=0.15)
    assert rows["reward-mean"]["equal_kl"]["high"] < -0.8
    assert rows["top-k 10"]["reward"] is None


class FakeSampler:
    """Answers of one token more for each answer to a prompt; the score is the length."""

    def __init__(self, *arguments, **options):
        self.tokenizer = self
        self.calls = []

    def __call__(self, text, add_special_tokens):
        assert not add_special_tokens, "the prompt is rendered already"
        return SimpleNamespace(input_ids=[ord(char) for char in text[-3:]])

    def decode(self, ids, skip_special_tokens):
        return "good " * len(ids)

    def sample(self, prompts, n, **options):
        return [[Completion([7] * (i + 1), []) for i in range(n)] for _ in prompts]

    def score(self, sequences, params, lengths):
        self.calls.append(dict(params.scorers))
        return [ScoredSequence(float(len(sequence))) for sequence in sequences]


def test_rollouts_of_a_real_base_are_those_that_trainings_read(tmp_path, monkeypatch):
    module = SimpleNamespace(Sampler=FakeSampler)
    monkeypatch.setitem(sys.modules, "trimtab.adapters.vllm.offline", module)
    world = replace(WORLDS["everyday"], base=tmp_path)
    monkeypatch.setattr(real, "load", lambda spec: task.Task(spec, world))
    real.roll_out("everyday", tmp_path / "rollouts.jsonl", replace(SCALE, **ROLLOUTS))
    records = list(data.read(tmp_path / "rollouts.jsonl"))
    texts = world.prompts("train", 3, 0)
    assert [record["prompt"] for record in records] == texts * 2, "not adjacent"
    assert [len(record["completion_token_ids"]) for record in records] == [1] * 3 + [2] * 3
    assert [record["completion"] for record in records] == ["good "] * 3 + ["good good "] * 3
    for record in records:
        assert record["prompt_token_ids"] == [ord(char) for char in record["prompt"][-3:]]
        assert record["rewards"] == {
            name: reward(record["prompt"], record["completion"])
            for name, reward in world.rewards.items()
        }


def test_the_learned_reward_is_the_scorers_own_score_of_whole_answers(tmp_path):
    known = {"path": task.STEERS["everyday"][0], "family": "function"}
    bench = Bench.__new__(Bench)
    bench.scorers = {"td-lambda": "a/checkpoint", REWARD: known}
    bench.prompts, bench.sampler = [[1], [1, 2, 3]], FakeSampler()
    groups = bench.sampler.sample(bench.prompts, 2)
    mean = (1 + 1 + 1 + 2 + 3 + 1 + 3 + 2) / 4
    for name in ("base", "vas"):  # the base's answers are scored too, to compare with
        assert bench._learned(METHODS[name], groups) == {"td-lambda": mean}
    assert bench._learned(METHODS["reward-default"], groups) == {}, "it is not learned"
    assert bench.sampler.calls == [{"td-lambda": 1.0}] * 2


@pytest.mark.real
@pytest.mark.engine
def test_the_smallest_arena_of_the_real_base(tmp_path, smollm2):
    pytest.importorskip("vllm")
    env = environment(HF_HUB_OFFLINE="1", TRIMTAB_CACHE=str(smollm2.parent))
    [result] = json_lines(HERE / "arena_real.py", tmp_path, env=env)
    assert result["renders"], "prompts are rendered as the tokenizer's template does"
    assert result["base"] + 0.1 < result["guided"]
    assert 0 < result["kl"] < 8
    assert "## Against best-of-N" in (tmp_path / "out" / "leaderboard.md").read_text()
