"""Generators of reasoning-gym as worlds of the arena."""

import sys

import pytest

from trimtab.errors import TrimtabError
from trimtab_lab.arena import arena, scale, task
from trimtab_lab.worlds import gym
from trimtab_models import demo


@pytest.fixture
def spec():
    pytest.importorskip("reasoning_gym")
    return f"gym:spell_backward@{demo.base()}"


def test_a_generator_is_a_world(spec):
    made = task.load(spec)
    world = made.world
    assert world.name == task.name(spec) == "gym-spell_backward"
    assert str(world.base()) == str(demo.base())
    train, test = (world.prompts(which, 20, 0) for which in ("train", "test"))
    assert (len(set(train)), len(set(test))) == (20, 20)
    assert not set(train) & set(test)
    assert test == world.prompts("test", 20, 0) != world.prompts("test", 20, 1)
    prompt = next(one for one in test if gym.ASK in one)
    word = prompt.split("nus): ")[1].split()[0]
    score = world.rewards[world.gold]
    assert score(prompt, f"I reverse it: <answer>{word[::-1]}</answer>") == 1
    assert score(prompt, word[::-1] + "\n") == 1
    assert score(prompt, f"<answer>{word}x</answer>") < 1
    assert score(prompt, "") == 0
    chosen = arena.chosen(made, scale.of(world, quick=True), ())
    assert {"base", "probe", "pargs"} <= {method.name for method in chosen}


@pytest.mark.parametrize(
    ("answer", "final"),
    [
        (" 4 \n", "4"),
        ("<answer>4</answer> or <answer> 5 </answer>.", "5"),
        ("It is <answer>6", "6"),
        ("6</answer>", "6</answer>"),
    ],
)
def test_the_final_answer_is_in_the_last_tags(answer, final):
    assert gym.final(answer) == final


def test_an_unknown_generator_is_refused_by_its_name(spec):
    with pytest.raises(TrimtabError, match=r"no generator 'spell'.*spell_backward"):
        task.load("gym:spell")


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(TrimtabError, match=r"pip install 'trimtab\[gym\]'"):
        task.load("gym:leg_counting")
