"""A world on disk: a base that reads its words, rollouts with every reward, scorers from them."""

import math
import os
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab_lab.worlds import WORLDS, __main__, build, language_model
from trimtab_lab.worlds.world import World
from trimtab_models import checkpoint, data

NAMES = ("digest", "tools", "sums")


@pytest.mark.parametrize("name", NAMES)
def test_tokenizer_gives_back_every_answer(name: str) -> None:
    world = WORLDS[name]
    assert world.documents is not None
    tokenizer = language_model.tokenizer_of(world.documents(2000, 0))
    for prompt in world.prompts("test", 50, 0):
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids
        chat = [{"role": "user", "content": prompt.split("|>")[1].partition("<|")[0]}]
        rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)
        assert rendered.input_ids == ids
    for text in world.documents(50, 1):
        answer = text.rpartition("<|assistant|>")[2]
        ids = tokenizer(answer, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True) + "<|end|>" == answer
        assert len(ids) <= world.max_tokens


def test_only_the_last_answer_is_learnt() -> None:
    ids = [3, 7, 1, 4, 8, 9, 1, 3, 6, 1, 4, 5, 1]  # 4 opens an answer, 1 ends every turn
    assert language_model._answers(ids, 4) == [*[-100] * 11, 5, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digest world whose base has seen next to nothing."""
    out = tmp_path_factory.mktemp("digest")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "DOCUMENTS", 256)
        patch.setattr(__main__, "PROMPTS", 3)
        patch.setattr(__main__, "COMPLETIONS", 6)
        __main__.main(["digest", "--out", str(out)])
    return out


def test_base_is_a_causal_model(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.vocab_size == len(tokenizer)
    assert not list(folder.glob("base.run/checkpoint-*"))


def test_rollouts_hold_every_reward(folder: Path) -> None:
    world = WORLDS["digest"]
    records = data.read(folder / "rollouts.jsonl")
    assert len(records) == 72  # rollout_factors: eight times the prompts, half the answers
    assert [r["prompt"] for r in records[:24]] == [r["prompt"] for r in records[24:48]]
    for record in records:
        texts = record["prompt"], record["completion"]
        assert record["rewards"] == {name: f(*texts) for name, f in world.rewards.items()}
        assert len(record["completion_token_ids"]) <= world.max_tokens


def test_what_is_there_is_not_made_again(folder: Path) -> None:
    made = [folder / "base/model.safetensors", folder / "rollouts.jsonl"]
    times = [os.stat(path).st_mtime_ns for path in made]
    __main__.main(["digest", "--out", str(folder)])
    assert [os.stat(path).st_mtime_ns for path in made] == times


@pytest.mark.parametrize(
    ("objective", "reward", "family"),
    [
        ("distribution", "main_idea", "distribution"),
        ("bradley-terry", "conciseness", "head"),
    ],
)
def test_scorers(folder: Path, objective: str, reward: str, family: str) -> None:
    world: World = WORLDS["digest"]
    name = f"{reward}-{objective}"
    out = build.train(world, folder, name, objective, reward, epochs=1, layers=1)
    assert out == folder / "scorers" / name
    _, info = checkpoint.load(out)
    assert info.family == family
    assert math.isfinite(info.mean)
    if family == "distribution":
        assert info.support == world.supports[reward]
    assert build.train(world, folder, name, "td-lambda", "gold") == out
