"""What a run is charged with: time and computation of its answers, and of nothing else."""

import time
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM

from trimtab.sampling import Completion
from trimtab_lab.arena import bench as benches
from trimtab_lab.arena.bench import Bench
from trimtab_lab.arena.methods import METHODS
from trimtab_lab.arena.scale import Scale
from trimtab_lab.arena.task import Task
from trimtab_lab.worlds import WORLDS
from trimtab_models import demo

PROMPTS, ANSWERS, DRAWN, SECONDS = 3, 2, 5, 0.5
SCORER, FORWARDED = 1000, 60


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The demo's base, and a policy that takes long to tune; scorers forward 60 tokens a run."""
    scale = Scale(0, 0, 0, PROMPTS, 0, ANSWERS, (), ())
    made = Bench(Task("reviews", WORLDS["reviews"]), str(demo.base()), {}, scale, tmp_path)
    status = {"name": "s", "family": "head", "tokens_forwarded": 0, "flops": 0}
    composite = {"name": "sum", "family": "composite", "tokens_forwarded": 7, "flops": 7}

    def ask(method):
        return [[dict(status), composite]]

    def tune(task, out, method, scaled_beta, steps):
        time.sleep(SECONDS)
        return tmp_path

    def sample(task, path, base, prompts, seed):
        status["tokens_forwarded"] += FORWARDED
        status["flops"] += 2 * SCORER * FORWARDED
        return [Completion([5] * DRAWN, []) for _ in prompts]

    made.sampler = SimpleNamespace(engine=SimpleNamespace(collective_rpc=ask))
    monkeypatch.setattr(benches.rivals, "policy", tune)
    monkeypatch.setattr(benches.rivals, "sample", sample)
    return made


def test_a_rival_is_tuned_before_the_clock_starts(bench):
    assert bench.run(METHODS["rl"], 2.0).seconds < SECONDS


def test_prompts_count_once_for_all_their_answers(bench):
    run = bench.run(METHODS["rl"], 2.0)
    size = AutoModelForCausalLM.from_pretrained(demo.base()).num_parameters()
    read = sum(map(len, bench.prompts))
    assert read > PROMPTS
    spent = 2 * (size * (read + PROMPTS * ANSWERS * DRAWN) + SCORER * FORWARDED)
    assert run.flops * PROMPTS * ANSWERS == pytest.approx(spent)
    assert run.drawn_tokens == DRAWN
    assert run.scorer_tokens * PROMPTS * ANSWERS == FORWARDED


def test_scorers_judge_answers_of_the_base_and_of_their_own_method(bench, monkeypatch):
    """Probes cannot read answers that another scorer guided: their states are not kept."""
    bench.scorers = {"probe": "path", "other": "path"}
    scoring = []

    def score(sequences, params, lengths):
        scoring.extend(params.scorers)
        return [SimpleNamespace(value=0.5)]

    monkeypatch.setattr(bench.sampler, "score", score, raising=False)
    answers = [[Completion([5], [])] for _ in bench.prompts]
    assert bench._learned(METHODS["base"], answers) == {"probe": 0.5, "other": 0.5}
    assert bench._learned(METHODS["probe"], answers) == {"probe": 0.5}
    assert bench._learned(METHODS["top-k 10"], answers) == {}
    assert scoring == ["probe", "other", "probe"]
