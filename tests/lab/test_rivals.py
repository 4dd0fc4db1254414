"""Rivals of guidance in the tiny world, where what they gain and how far they go is exact; kills.

The world is `Tiny`, its four tokens spelt: "." ends, the letters are a, b and c.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from trimtab_lab.rivals import divergence, soup, train
from trimtab_lab.worlds.build import roll_out
from trimtab_lab.worlds.tiny import EOS, LENGTH, PROMPTS, Tiny
from trimtab_lab.worlds.tiny import reward as exact
from trimtab_lab.worlds.world import World
from trimtab_models import demo
from trimtab_models.rows import Rollout
from trimtab_models.training.saves import SafeTrainer

pytestmark = pytest.mark.slow  # trains

SPELT = {".": EOS, "a": 1, "b": 2, "c": 3}
BETA = 3.0
QUICK = {"max_steps": 48, "learning_rate": 3e-3, "save_steps": 16, "logging_steps": 4}
QUICK |= {"num_generations": 16, "disable_tqdm": True}


def _ids(text: str) -> tuple[int, ...]:
    return tuple(SPELT[letter] for letter in text.replace(" ", ""))


def _gold(prompt: str, completion: str) -> float:
    ids = _ids(completion)
    return exact(_ids(prompt), ids if len(ids) == LENGTH else (*ids, EOS))


def _long(prompt: str, completion: str) -> float:
    return len(_ids(completion)) / LENGTH


def _prompts(split: str, n: int, seed: int) -> list[str]:
    return ["ab", "c"] * (n // 2)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def world(tiny: Tiny, folder: Path) -> World:
    words = Tokenizer(WordLevel(SPELT, unk_token="."))
    words.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=".", pad_token=".")
    tokenizer.save_pretrained(folder / "base")
    tiny.base.float().save_pretrained(folder / "base")
    tiny.base.double()
    names = ("gold", "long")
    return World(
        name="tiny",
        gold="gold",
        rewards={"gold": _gold, "long": _long},
        supports=dict.fromkeys(names, (-1.0, 1.0)),
        bins=dict.fromkeys(names, 5),
        prompts=_prompts,
        max_tokens=LENGTH,
        base=folder / "base",
    )


def _exact(tiny: Tiny, path: Path, reward: torch.Tensor) -> tuple[float, float]:
    """A policy's exact E[R] and KL(π ‖ π0), over both prompts."""
    model = AutoModelForCausalLM.from_pretrained(path)
    with torch.inference_mode():
        log_pi = model(tiny.rows.input_ids).logits.double().log_softmax(-1)
    chances = (tiny.rows.chosen(log_pi) * tiny.rows.mask()).sum(1)
    gains, gaps = chances.exp() @ reward, chances.exp() @ (chances - tiny.probabilities.log())
    return float(gains) / len(PROMPTS), float(gaps) / len(PROMPTS)


def _share(tiny: Tiny, path: Path, reward: torch.Tensor, beta: float) -> float:
    """What of the possible gain in E[R] − KL/β a policy has: 0 is the base, 1 the optimum."""
    got, gap = _exact(tiny, path, reward)
    half = (len(PROMPTS), -1)
    base = (tiny.probabilities @ reward / len(PROMPTS)).item()
    z = (tiny.probabilities * (beta * reward).exp()).view(half).sum(1)
    best = float(z.log().mean()) / beta
    return (got - gap / beta - base) / (best - base)


def test_rl_comes_near_the_optimum_and_a_kill_costs_nothing(
    tiny: Tiny, world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards = {"gold": 1.0}
    whole = train(world, folder, "whole", "rl", rewards, BETA, **QUICK)
    assert 0.6 < _share(tiny, whole, tiny.rewards, BETA) <= 1
    save = SafeTrainer._save_checkpoint

    def killed(self: Any, *arguments: Any) -> None:
        if self.state.global_step == 32:
            raise KeyboardInterrupt
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SafeTrainer, "_save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            train(world, folder, "cut", "rl", rewards, BETA, **QUICK)
    assert not (folder / "rivals" / "cut").exists()
    with pytest.raises(ValueError, match=r"beta \(3.0 then, 2.0 now\)"):
        train(world, folder, "cut", "rl", rewards, 2.0, **QUICK)
    with pytest.raises(ValueError, match=r"rewards .*gold.*long"):
        train(world, folder, "cut", "rl", {"long": 1.0}, BETA, **QUICK)
    cut = train(world, folder, "cut", "rl", rewards, BETA, **QUICK)
    weights = "model.safetensors"
    assert (cut / weights).read_bytes() == (whole / weights).read_bytes()
    logs = [folder / "rivals" / f"{name}.run" / "log.jsonl" for name in ("whole", "cut")]
    assert logs[0].read_text() == logs[1].read_text()


def test_the_penalty_keeps_the_policy_near_the_base(tiny: Tiny, world: World, folder: Path) -> None:
    near = train(world, folder, "near", "rl", {"gold": 1.0}, 0.2, **QUICK)
    far = train(world, folder, "whole", "rl", {"gold": 1.0}, BETA, **QUICK)
    (_, close), (_, gone) = (_exact(tiny, path, tiny.rewards) for path in (near, far))
    assert close < gone / 5


def test_a_weighted_sum_of_rewards(tiny: Tiny, world: World, folder: Path) -> None:
    path = train(world, folder, "sum", "rl", {"gold": 1.0, "long": -2.0}, BETA, **QUICK)
    long = torch.tensor([sum(t != EOS for t in y) / LENGTH for _, y in tiny.finals]).double()
    assert _share(tiny, path, tiny.rewards - 2 * long, BETA) > 0.7


def test_dpo_makes_a_policy(tiny: Tiny, world: World, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"rollouts\.jsonl"):
        train(world, folder, "dpo", "dpo", {"gold": 1.0}, BETA)
    assert world.base is not None
    roll_out(world, world.base, folder / "rollouts.jsonl", prompts=2, completions=1024)
    settings = {"learning_rate": 3e-3, "disable_tqdm": True, "max_steps": 80}
    settings |= {"per_device_train_batch_size": 64}
    out = train(world, folder, "dpo", "dpo", {"gold": 1.0}, BETA, **settings)
    assert 0.5 < _share(tiny, out, tiny.rewards, BETA) <= 1


def test_what_is_there_is_left_and_what_is_unknown_is_named(world: World, folder: Path) -> None:
    there = folder / "rivals" / "there"
    there.mkdir(parents=True)
    assert train(world, folder, "there", "rl", {"gold": 1.0}, 1.0) == there
    with pytest.raises(ValueError, match="tiny has no reward 'wit'; expected gold, long"):
        train(world, folder, "new", "rl", {"wit": 1.0}, 1.0)


@pytest.fixture(scope="module")
def other(world: World, folder: Path) -> Path:
    """The base with other weights."""
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    torch.manual_seed(1)
    for weights in model.parameters():
        weights.data += 0.3 * torch.randn_like(weights)
    model.save_pretrained(folder / "other")
    AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / "other")
    return folder / "other"


def test_a_soup_is_the_mean_of_weights(folder: Path, other: Path) -> None:
    out = soup([folder / "base", other], [0.25, 0.75], folder / "soup")
    first, second, mixed = (
        AutoModelForCausalLM.from_pretrained(path).state_dict()
        for path in (folder / "base", other, out)
    )
    for name, value in mixed.items():
        torch.testing.assert_close(value, 0.25 * first[name] + 0.75 * second[name])
    assert AutoTokenizer.from_pretrained(out).eos_token == "."
    with pytest.raises(ValueError, match="with sum 1; not"):
        soup([folder / "base", other], [0.5, 0.6], folder / "more")
    with pytest.raises(ValueError, match="not models of one shape"):
        soup([folder / "base", demo.base()], [0.5, 0.5], folder / "more")
    assert not (folder / "more").exists()


def test_divergence_is_what_a_loop_says(folder: Path, other: Path) -> None:
    base, policy = (AutoModelForCausalLM.from_pretrained(path) for path in (folder / "base", other))
    draw = torch.Generator().manual_seed(0)
    rollouts = [
        Rollout(*(torch.randint(4, (n,), generator=draw).tolist() for n in lengths), 0.0)
        for lengths in ((3, 5), (7, 1), (1, 9), (4, 4), (2, 6))
    ]
    expected = []
    for prompt, completion, *_ in rollouts:
        total = 0.0
        for t in range(len(completion)):
            ids = torch.tensor([prompt + completion[:t]])
            with torch.no_grad():
                p, q = (model(ids).logits[0, -1].double().softmax(-1) for model in (policy, base))
            total += float((p * (p / q).log()).sum())
        expected.append(total)
    result = divergence(policy, base, rollouts, pad_id=0, batch_size=2)
    torch.testing.assert_close(result, torch.tensor(expected).double(), rtol=1e-4, atol=1e-5)
    assert float(divergence(base, base, rollouts, pad_id=0).abs().max()) == 0
