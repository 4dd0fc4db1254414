"""`trimtab demo train`, with the demo's base in place of the real one and no engine."""

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from trimtab.sampling import Completion
from trimtab_lab import demo_scorers
from trimtab_lab.arena.task import Task
from trimtab_lab.demo_scorers import PLANS, Plan
from trimtab_lab.worlds import WORLDS
from trimtab_models import checkpoint, data, demo, pretrained, smollm2
from trimtab_models.training.run import run

PLAN = Plan("everyday", "kindness", "kindness", 20, 4, {})


class FakeSampler:
    """Answers of random words; the stronger the guidance, the more of them are `superb`."""

    max_length = 512

    def __init__(self, stops_after=None):
        self.tokenizer = pretrained.tokenizer(str(demo.base()))
        words = " good decent superb awful phone"
        self.words = self.tokenizer(words, add_special_tokens=False).input_ids
        self.superb = self.tokenizer(" superb", add_special_tokens=False).input_ids[-1]
        self.left = stops_after

    def answer(self, seed, beta=0.0):
        draw = random.Random(seed)
        chance = min(0.2 * beta, 1.0)
        tokens = [
            self.superb if draw.random() < chance else draw.choice(self.words)
            for _ in range(draw.randint(3, 9))
        ]
        return Completion(tokens, [-1.0] * len(tokens), kl=0.25 * beta**2)

    def stream(self, requests, **options):
        for request in requests:
            if self.left == 0:
                raise KeyboardInterrupt
            if self.left is not None:
                self.left -= 1
            yield request.key, self.answer(request.seed)

    def sample(self, prompts, n, *, seed, params, **options):
        beta = 0.0 if params is None else params.beta
        return [
            [self.answer(f"{seed} {i} {j}", beta) for j in range(n)] for i in range(len(prompts))
        ]


@pytest.fixture
def task():
    def prompts(split, n, seed):
        return [demo.chat(prompt) for prompt in demo.prompts(split, n, seed)]

    rewards = {"kindness": lambda prompt, answer: answer.count("superb") / 9}
    world = replace(WORLDS["everyday"], base=demo.base, prompts=prompts, rewards=rewards)
    return Task("everyday", world)


@pytest.mark.slow
def test_answers_are_resumed_and_become_a_probe(task, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("trimtab_lab.rollouts.run.BATCH", 4)
    with pytest.raises(KeyboardInterrupt):
        demo_scorers.answers(task, PLAN, tmp_path, lambda: FakeSampler(stops_after=14))
    path = tmp_path / "rollouts" / "everyday.jsonl"
    first = path.read_text().splitlines()
    assert 0 < len(first) < 80
    demo_scorers.answers(task, PLAN, tmp_path, FakeSampler)
    assert path.read_text().splitlines()[: len(first)] == first
    demo_scorers.answers(task, PLAN, tmp_path, lambda: pytest.fail("nothing is missing"))
    places = {
        (line["index"], line["sample"]) for line in map(json.loads, path.read_text().splitlines())
    }
    assert places == {(i, j) for i in range(20) for j in range(4)}

    records = list(demo_scorers.labelled(task, PLAN, tmp_path))
    for record in records:
        assert len(record["prefix_rewards"]) == len(record["completion_token_ids"])
        assert record["prefix_rewards"][-1] == record["reward"]
        assert record["reward"] == task.world.rewards["kindness"]("", record["completion"])
    data.write(tmp_path / "data.jsonl", records)
    settings = demo_scorers.settings(
        PLAN, "demo", tmp_path / "data.jsonl", tmp_path / "kindness-probe"
    )
    info = checkpoint.read_info(run(settings))
    assert (info.family, info.base_model) == ("probe", "trimtab-demo-base")
    assert info.prefix_auc is not None


def test_the_check_spends_about_one_nat(task, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "read_info", lambda _: SimpleNamespace(deviation=0.4))
    [check] = demo_scorers.checks(task, {"kindness-probe": PLAN}, tmp_path, FakeSampler())
    assert check.kl.mean == pytest.approx(1.0)
    assert check.beta == pytest.approx(2.0)
    assert check.guided.mean > check.base.mean
    assert check.guided.n == len(task.world.prompts("test", demo_scorers.TEST_PROMPTS, 0))
    assert "kindness-probe: kindness" in str(check)


def test_plans_are_of_scorers_that_are_served():
    assert tuple(PLANS) == smollm2.PROBES
    for plan in PLANS.values():
        assert {plan.reward, plan.judged} <= set(WORLDS[plan.world].rewards)
        same = [other for other in PLANS.values() if other.world == plan.world]
        assert {(other.prompts, other.n) for other in same} == {(plan.prompts, plan.n)}
    with pytest.raises(ValueError, match="no scorer 'kindnes'"):
        demo_scorers.chosen(["kindnes"])
