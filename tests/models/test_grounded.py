"""Preference-grounded training: its losses by hand, what it gains exactly, and its files."""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, LlamaForCausalLM

from trimtab_lab.worlds.tiny import EOS, Tiny, config
from trimtab_models import checkpoint, data, demo, networks
from trimtab_models.generation import generate
from trimtab_models.objectives.plackett_luce import PlackettLuce
from trimtab_models.rows import Ranked, Rollout, pad
from trimtab_models.training.config import load
from trimtab_models.training.grounded import job
from trimtab_models.training.grounded.guidance import TokenRewards, rank
from trimtab_models.training.grounded.losses import reinforce, weighted_mle
from trimtab_models.training.grounded.settings import NAMES, GroundedConfig, Stopping
from trimtab_models.training.grounded.stopping import Stopper
from trimtab_models.training.grounded.turns import Turns
from trimtab_models.training.saves import SaveFailed

SENTIMENT = "trimtab_models.demo.oracles:sentiment"


def test_weighted_mle_by_hand() -> None:
    rows = pad([Rollout([1], [0, 1], 0.0), Rollout([1], [1], 0.0)], 0)
    chances = torch.tensor(
        [[[0.5, 0.5], [0.2, 0.8], [0.1, 0.9]], [[0.7, 0.3], [0.5, 0.5], [0.5, 0.5]]]
    )
    rewards = torch.tensor([[0.9, 0.3], [0.2, 7.0]])  # the 7 stands past an end
    expected = -(0.75 * math.log(0.5) + 0.25 * math.log(0.8) + math.log(0.3)) / 2
    assert weighted_mle(chances.log(), rows, rewards).item() == pytest.approx(expected, rel=1e-5)


def test_reinforce_by_hand() -> None:
    rows = pad([Rollout([1], [0, 1], 0.0), Rollout([1], [1], 0.0)], 0)
    chances = torch.tensor(
        [[[0.5, 0.5], [0.2, 0.8], [0.1, 0.9]], [[0.7, 0.3], [0.5, 0.5], [0.5, 0.5]]]
    )
    rewards = torch.tensor([[0.9, 0.3], [0.2, 7.0]])

    def entropy(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    gains = [
        0.9 * math.log(0.5) + 0.125 * entropy(0.5),
        0.3 * math.log(0.8) + 0.125 * entropy(0.2),
        0.2 * math.log(0.3) + 0.125 * entropy(0.7),
    ]
    loss = reinforce(chances.log(), rows, rewards, alpha=0.125)
    assert loss.item() == pytest.approx(-sum(gains) / 3, rel=1e-5)


def test_ranks_are_best_first_and_ties_fall_either_way() -> None:
    group = [Rollout([1], [token], label) for token, label in ((2, 0.0), (3, 1.0), (4, 0.0))]
    orders = {str(rank(group, 3, str(seed))[0].completions) for seed in range(20)}
    assert orders == {"[[3], [2], [4]]", "[[3], [4], [2]]"}


def test_generations_are_drawn_from_the_model_after_prompts_of_any_length() -> None:
    world = Tiny()
    prompts = [[1, 2], [3]] * 1500
    torch.manual_seed(0)
    drawn = generate(world.base, prompts, eos=EOS, pad_id=EOS, most=4)
    counts = torch.zeros(len(world.finals), dtype=torch.float64)
    number = {final: i for i, final in enumerate(world.finals)}
    for prompt, completion in zip(prompts, drawn, strict=True):
        counts[number[tuple(prompt), tuple(completion)]] += 1 / 1500
    # Half the summed distance between frequencies and chances, for each of the two prompts.
    assert float((counts - world.probabilities).abs().sum()) / 4 < 0.1


@pytest.mark.parametrize(
    ("reestimate", "thousands"),
    [(0.5, [0, 1, 2, 3, 4, 5, 6]), (1, range(12)), (0, [0]), (0.4, [0, 1, 2, 3, 4])],
)
def test_the_reward_is_estimated_when_the_paper_says(
    reestimate: float, thousands: Sequence[int]
) -> None:
    """At the start and, of 12,000 steps, after every 1,000 up to the 6,000th; or throughout."""
    paper = _settings("grounded-reinforce", steps=12000, period=1000, reestimate=reestimate)
    assert [s for s in range(12000) if paper.estimates(s)] == [1000 * n for n in thousands]
    assert _settings("grounded-mle").reestimate == 0.5
    assert _settings("grounded-mle", steps=5, period=20).estimates(0)
    # 0.29 · 100 is just below 29.
    assert _settings("grounded-mle", steps=100, period=29, reestimate=0.29).estimates(29)


@pytest.mark.parametrize("seed", range(3))
def test_rates_fall_on_a_plateau_as_torchs_do(seed: int) -> None:
    figures = torch.randn(30, generator=torch.Generator().manual_seed(seed)).cumsum(0).tolist()
    theirs, ours = (torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 1.0) for _ in range(2))
    schedule = ReduceLROnPlateau(theirs, factor=0.8, patience=2, threshold=0)
    model = torch.nn.Linear(1, 1)
    stopper = Stopper(Stopping(), model, ours)
    for number, figure in enumerate(figures):
        torch.nn.init.constant_(model.weight, figure)
        schedule.step(figure)
        stopper.see(figure)
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        best = min(figures[: number + 1])
        assert stopper.weights["weight"].item() == pytest.approx(best)
        assert stopper.ended == (number - figures.index(best) >= 7)
    stopper.keep_best()
    assert model.weight.item() == pytest.approx(min(figures))


class _Scripted(TokenRewards):
    """Its losses of held-out rankings are a list's."""

    def _validation_loss(self, ranked: object, batch_size: int) -> float:
        self.seen.append([part.detach().clone() for part in self.model.parameters()])
        return self.losses.pop(0)


def test_an_estimation_ends_by_held_out_rankings() -> None:
    ranked = [Ranked([1] * n, [[1, 2], [2]]) for n in range(1, 11)]
    stopping = {"validation": 0.2, "count": 2}
    settings = _settings(
        "grounded-mle", reward_stopping=stopping, reward_epochs=9, reward_batch_size=4
    )
    torch.manual_seed(0)
    rewards = _Scripted(networks.build("scalar", config()), PlackettLuce(), EOS)
    rewards.losses, rewards.seen = [3.0, 2.0, 2.5, 2.1, 0.0], []
    rewards.learn(ranked, settings, "0")
    assert rewards.losses == [0.0], "it ended after two epochs of two steps without a lower loss"
    best = zip(rewards.model.parameters(), rewards.seen[1], strict=True)
    assert all(torch.equal(now, then) for now, then in best)
    last = zip(rewards.model.parameters(), rewards.seen[-1], strict=True)
    assert not all(torch.equal(now, then) for now, then in last), "the control"


def test_a_gradient_is_clipped_and_weights_decay_as_set() -> None:
    """One step from a large rate of decay: what is left of the weights tells the settings."""
    ranked = [Ranked([1], [[1, 2], [2]])]
    before = networks.build("scalar", config())
    norms = []
    clip = torch.nn.utils.clip_grad_norm_
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.utils, "clip_grad_norm_", lambda p, norm: norms.append(norm) or clip(p, norm)
        )
        for decay in (0.0, 0.5):
            model = copy.deepcopy(before)
            settings = _settings(
                "grounded-mle",
                reward_epochs=1,
                reward_learning_rate=1e-3,
                weight_decay=decay,
                max_grad_norm=5.0,
            )
            TokenRewards(model, PlackettLuce(), EOS).learn(ranked, settings, "0")
            pairs = zip(model.parameters(), before.parameters(), strict=True)
            moved = [(now - (1 - 1e-3 * decay) * then).abs().max() for now, then in pairs]
            assert max(moved) < 1.001e-3, "Adam's first step is at most the rate"
    assert norms == [5.0, 5.0]


def test_settings_that_would_be_ignored_are_refused() -> None:
    with pytest.raises(ValueError, match="interval of `stopping`"):
        _settings("grounded-mle", eval_steps=10)
    with pytest.raises(ValueError, match="must be a multiple"):
        _settings("grounded-mle", eval_steps=30, stopping={})
    assert _settings("grounded-mle", eval_steps=50, stopping={}).evaluates(150)
    with pytest.raises(ValueError, match=r"stopping\.coun: no such setting; did you mean 'count'"):
        load(None, ["stopping.coun=3"], "grounded-mle")


def _settings(objective: str, **fields: object) -> GroundedConfig:
    paths = {"base": "-", "data": "-", "reward": "-", "out": "-"}
    return GroundedConfig.model_validate({"objective": objective, **paths, **fields})


class _Equal(TokenRewards):
    """All tokens alike: what turns reward-weighted MLE into the plain one."""

    def __call__(self, rows: object) -> torch.Tensor:
        return torch.ones_like(super().__call__(rows))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _toy(
    world: Tiny,
    objective: str,
    rewards: type[TokenRewards] = TokenRewards,
    seed: int = 0,
    batch_size: int = 32,
) -> float:
    """Train the toy world's own base; gives its exact expected reward, over both prompts."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config()).eval()
    model.load_state_dict({k: v.float() for k, v in world.base.state_dict().items()})
    reward = dict(zip(world.finals, world.rewards.tolist(), strict=True))
    settings = _settings(
        objective,
        steps=60,
        period=30,
        reestimate=0,
        learning_rate=3e-3,
        batch_size=batch_size,
        k=4,
        rankings=1024,
        reward_batch_size=16,
        reward_learning_rate=3e-3,
        max_new_tokens=4,
    )
    network = networks.build("scalar", config(num_hidden_layers=1))
    turns = Turns(
        settings,
        model,
        rewards(network, PlackettLuce(scale=2.0), EOS),
        world.sample("rollouts", 2000),
        lambda made: [reward[tuple(one.prompt), tuple(one.completion)] for one in made],
        eos=EOS,
        pad_id=EOS,
    )
    turns.run()
    with torch.inference_mode():
        log_pi = model(world.rows.input_ids).logits.double().log_softmax(-1)
    chances = (world.rows.chosen(log_pi) * world.rows.mask()).sum(1).exp()
    return float(chances @ world.rewards) / 2


@pytest.mark.slow
def test_both_algorithms_raise_the_exact_expected_reward_over_plain_mle() -> None:
    world = Tiny()
    plain = _toy(world, "grounded-mle", _Equal)
    weighted = [_toy(world, "grounded-mle", seed=seed) for seed in (0, 1)]
    # Without a baseline the gradient is noisy: at 32 one seed in two ends below where it began.
    reinforced = [_toy(world, "grounded-reinforce", seed=seed, batch_size=128) for seed in (0, 1)]
    assert sum(weighted) / 2 > plain + 0.05
    assert sum(reinforced) / 2 > plain + 0.08


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.jsonl"
    data.write(
        path,
        [
            {"prompt": demo.chat(prompt), "completion": "The food was good. I would recommend it."}
            for prompt in demo.prompts("train", 12)
        ],
    )
    return path


def _demo(records: Path, out: Path, **fields: object) -> GroundedConfig:
    small = {"steps": 4, "period": 2, "batch_size": 2, "k": 2, "rankings": 2, "layers": 1}
    return GroundedConfig.model_validate(
        {
            "objective": "grounded-mle",
            "base": "demo",
            "data": str(records),
            "reward": SENTIMENT,
            "out": out,
            "max_new_tokens": 8,
            **small,
            **fields,
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("objective", NAMES)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    objective: str, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"objective": objective}
    if objective == "grounded-reinforce":  # its rate falls, and its best weights are kept
        fields["stopping"] = {"validation": 0.3, "patience": 0, "decay": 0.5}
    whole = job.run(_demo(records, tmp_path / "whole", **fields))
    config = _demo(records, tmp_path / "stopped", **fields)
    update, done = Turns._update, []

    def stop(turns: Turns) -> float:
        done.append(turns.step)
        if len(done) == 4:
            raise KeyboardInterrupt
        return update(turns)

    with monkeypatch.context() as patch:
        patch.setattr(Turns, "_update", stop)
        with pytest.raises(KeyboardInterrupt):
            job.run(config)
    assert not config.out.exists()
    job.run(config)
    for file in ("model.safetensors", "token-rewards/model.safetensors"):
        ours, theirs = load_file(config.out / file), load_file(whole / file)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    logs = [(tmp_path / f"{name}.run" / "log.jsonl").read_text() for name in ("whole", "stopped")]
    assert logs[0] == logs[1]
    assert [json.loads(line)["step"] for line in logs[0].splitlines()] == [2, 4]


def test_held_out_prompts_end_a_run_with_its_best_weights(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first evaluation is the best, so two more end the run, with its weights."""
    judged = iter(range(1000))
    monkeypatch.setattr(Turns, "evaluate", lambda turns, stopper: stopper.see(next(judged)) or 0.5)
    stops = {"stopping": {"validation": 0.3, "count": 2}, "eval_steps": 1, "steps": 20}
    whole = job.run(_demo(records, tmp_path / "whole", **stops))
    once = job.run(_demo(records, tmp_path / "once", steps=1, **{"stopping": stops["stopping"]}))
    ours, theirs = (load_file(out / "model.safetensors") for out in (whole, once))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    log = [*map(json.loads, (tmp_path / "whole.run" / "log.jsonl").read_text().splitlines())]
    assert [entry["step"] for entry in log] == [2, 3]
    assert all(entry["held_out_reward"] == 0.5 for entry in log)


def test_what_comes_out_loads_with_transformers_and_as_a_scorer(
    records: Path, tmp_path: Path
) -> None:
    out = job.run(_demo(records, tmp_path / "out"))
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 4
    plain = AutoModelForTokenClassification.from_pretrained(out / "token-rewards")
    assert plain.config.num_labels == 1
    _, info = checkpoint.load(out / "token-rewards")
    assert info.link == "sigmoid"
    assert "Plackett-Luce" in info.objective


def test_changed_settings_or_data_are_refused(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _demo(records, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("trimtab_models.training.grounded.job._write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job.run(config)
    with pytest.raises(ValueError, match="alpha"):
        job.run(config.model_copy(update={"alpha": 0.5}))
    data.write(records, data.read(records)[1:])
    with pytest.raises(ValueError, match="the data"):
        job.run(config)


def test_a_save_that_fails_says_so_and_leaves_the_one_before(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _demo(records, tmp_path / "out")
    save = torch.save

    def full(state: dict, path: Path) -> None:
        if state["step"] > 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(SaveFailed, match=r"step 4 .*No space left"):
            job.run(config)
    assert sorted(path.name for path in (tmp_path / "out.run").iterdir()) == [
        "checkpoint-2",
        "log.jsonl",
    ]
    job.run(config)
    assert sorted(path.name for path in (tmp_path / "out.run").iterdir()) == ["log.jsonl"]


def test_what_is_wrong_is_named(records: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="no_such"):
        job.run(_demo(records, out, reward="trimtab_models.demo.oracles:no_such"))
    with pytest.raises(ValueError, match="options of grounded-mle"):
        job.run(_demo(records, out, options={"width": 3}))
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        _demo(records, out, k=1)
    prompts = tmp_path / "prompts.jsonl"
    data.write(prompts, [{"prompt": "Hello"}])
    with pytest.raises(ValueError, match=r"prompts.jsonl, line 1: .*completion"):
        job.run(_demo(prompts, out))
