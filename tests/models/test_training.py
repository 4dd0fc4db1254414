"""Training, small: it learns, it resumes, and transformers alone can load what it wrote."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from trimtab_models import checkpoint, training
from trimtab_models.networks import LIKELY, build, next_histograms, scalar_head
from trimtab_models.objectives import OBJECTIVES
from trimtab_models.rows import Pair, Rollout, Rows
from trimtab_models.scoring import prefix_scores
from trimtab_models.training.schedule import warmup

EOS, GOOD, BAD = 1, 2, 3


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _tiny(vocabulary: int = 8) -> Any:
    set_seed(0)
    return scalar_head(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            pad_token_id=0,
        )
    )


def _rollouts(n: int) -> list[Rollout]:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(GOOD, BAD + 1, (n, 4), generator=draw).tolist()
    return [
        Rollout([4], [*row, EOS], sum(1 if token == GOOD else -1 for token in row) / 4)
        for row in tokens
    ]


def _pairs(rollouts: list[Rollout]) -> list[Pair]:
    ordered = sorted(rollouts, key=lambda rollout: rollout.label)
    half = len(ordered) // 2
    return [
        Pair([4], better.completion, worse.completion)
        for better, worse in zip(ordered[half:], ordered[:half], strict=True)
    ]


@pytest.mark.parametrize("name", ["td-lambda", "bradley-terry"])
def test_training_learns_the_order(name: str, tmp_path: Path) -> None:
    rollouts, objective, model = _rollouts(256), OBJECTIVES[name](), _tiny()
    items = _pairs(rollouts) if objective.data == "pairs" else rollouts

    def agreement() -> float:
        scores = prefix_scores(model, checkpoint.ScorerInfo(), rollouts, 0)
        labels = torch.tensor([rollout.label for rollout in rollouts])
        return float(
            torch.corrcoef(torch.stack([torch.stack([s[-1] for s in scores]), labels]))[0, 1]
        )

    before = agreement()
    work = tmp_path / "run"
    training.train(objective, model, items, work, pad_id=0, epochs=8, learning_rate=1e-2)
    assert before < 0.6
    assert agreement() > 0.9
    training.clear(work)
    assert [path.name for path in work.iterdir()] == ["log.jsonl"]


@pytest.mark.slow
def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"pad_id": 0, "epochs": 60, "batch_size": 32, "seed": 3}
    objective, rollouts = OBJECTIVES["td-lambda"](), _rollouts(128)
    whole = _tiny()
    training.train(objective, whole, rollouts, tmp_path / "whole", **options)

    calls = 0
    loss = type(objective).loss

    def fails_late(self: Any, values: torch.Tensor, rows: Rows, _: Any = None) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 220:  # after the save at step 200
            raise KeyboardInterrupt
        return loss(self, values, rows)

    monkeypatch.setattr(type(objective), "loss", fails_late)
    with pytest.raises(KeyboardInterrupt):
        training.train(objective, _tiny(), rollouts, tmp_path / "cut", **options)
    resumed = _tiny()
    training.train(objective, resumed, rollouts, tmp_path / "cut", **options)
    assert calls == 220 + 40  # the 240 steps of the run less the 200 saved ones
    for expected, actual in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, actual)


def test_nothing_is_dropped_before_a_scalar_head() -> None:
    dropouts = [module for module in _tiny().modules() if isinstance(module, torch.nn.Dropout)]
    assert dropouts
    assert all(module.p == 0 for module in dropouts)


def test_a_head_of_every_next_token_begins_as_the_bases_own_likelihood(tmp_path: Path) -> None:
    base = LlamaForCausalLM(_tiny().config)
    base.save_pretrained(tmp_path / "base")
    model = build("distributions", tmp_path / "base", bins=3)
    ids = torch.randint(1, base.config.vocab_size, (2, 7))
    with torch.inference_mode():
        logits = next_histograms(model(ids).logits - model.score.bias, base.config.vocab_size)
        log_pi0 = base(ids).logits.log_softmax(-1)
    for b, slope in enumerate((0.0, LIKELY / 2, LIKELY)):
        torch.testing.assert_close(logits[..., b], slope * log_pi0, atol=1e-4, rtol=1e-4)
    # What was trained goes on from where it was.
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(tmp_path / "trained")
    again = build("distributions", tmp_path / "trained", bins=3)
    assert torch.equal(again.score.weight, model.score.weight)


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, 1), (10, 1), (23, 3), (499, 50), (500, 50), (9_999, 50)]
)
def test_a_tenth_of_a_run_is_warm_up(steps: int, expected: int) -> None:
    assert warmup(steps) == expected


def test_a_short_run_reaches_its_learning_rate_and_says_its_length(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """23 steps: a warm-up of 50 would end below half of the rate, and log nothing."""
    options: dict[str, Any] = {"pad_id": 0, "batch_size": 1, "disable_tqdm": True}
    objective, items = OBJECTIVES["td-lambda"](), _rollouts(23)
    with caplog.at_level(logging.WARNING, "trimtab_models"):
        training.train(
            objective, _tiny(), items, tmp_path / "run", **options, epochs=1, learning_rate=1e-2
        )
        first = caplog.messages[0]
        training.train(
            objective, _tiny(), items, tmp_path / "own", **options, epochs=2, warmup_steps=0.5
        )
    assert first == "steps: 23, epochs: 1, warm-up steps: 3"
    assert "steps: 46, epochs: 2, warm-up steps: 23" in caplog.messages
    rates = training.train(
        objective,
        _tiny(),
        items,
        tmp_path / "each",
        **options,
        epochs=1,
        learning_rate=1e-2,
        logging_steps=1,
    ).state.log_history
    reached = [entry["learning_rate"] for entry in rates if "learning_rate" in entry]
    assert len(reached) == 23
    assert reached[:4] == pytest.approx([0, 1e-2 / 3, 2e-2 / 3, 1e-2])
    assert max(reached) == pytest.approx(1e-2)
    assert reached[-1] < 1e-3
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [23]


def test_early_stopping_with_one_evaluation_is_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = {"pad_id": 0, "batch_size": 1, "disable_tqdm": True}
    items = _rollouts(23)
    options |= {"validation": items[:3], "early_stopping": 1, "logging_steps": 1}
    said = r"a run of 23 steps has only one, at its end; set eval_steps to at most 11"
    with pytest.raises(ValueError, match=said):
        training.train(
            OBJECTIVES["td-lambda"](), _tiny(), items, tmp_path, **options, epochs=1, save_steps=23
        )
    trained = training.train(
        OBJECTIVES["td-lambda"](), _tiny(), items, tmp_path, **options, epochs=1, save_steps=11
    )
    evaluated = [e["step"] for e in trained.state.log_history if "eval_loss" in e]
    assert len(evaluated) >= 2
