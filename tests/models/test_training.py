"""Training, small: it learns, it resumes, and transformers alone can load what it wrote."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer, LlamaConfig, set_seed

from trimtab_models import checkpoint, data, demo, training
from trimtab_models.networks import scalar_head
from trimtab_models.objectives import OBJECTIVES
from trimtab_models.rows import Pair, Rollout, Rows

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


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_learns_the_order(name: str, tmp_path: Path) -> None:
    rollouts, objective, model = _rollouts(256), OBJECTIVES[name](), _tiny()
    items = _pairs(rollouts) if "bradley" in name else rollouts

    def agreement() -> float:
        ends = torch.stack([s[-1] for s in training.prefix_scores(model, rollouts, 0)])
        labels = torch.tensor([rollout.label for rollout in rollouts])
        return float(torch.corrcoef(torch.stack([ends, labels]))[0, 1])

    before = agreement()
    training.train(
        objective, model, items, tmp_path / "run", pad_id=0, epochs=8, learning_rate=1e-2
    )
    assert before < 0.6
    assert agreement() > 0.9
    assert not (tmp_path / "run").exists()


def test_prefix_scores_are_those_of_each_prefix_alone() -> None:
    model, rollouts = _tiny(), _rollouts(3)
    rollouts[1] = Rollout([4, 4, 4], [GOOD, EOS], 0.0)
    for rollout, scores in zip(rollouts, training.prefix_scores(model, rollouts, 0), strict=True):
        assert len(scores) == len(rollout.completion)
        for t in range(1, len(scores) + 1):
            ids = torch.tensor([rollout.prompt + rollout.completion[:t]])
            assert scores[t - 1].item() == pytest.approx(
                model(ids).logits[0, -1, 0].item(), abs=1e-5
            )


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
    for expected, found in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("name", ["td-lambda", "bradley-terry"])
def test_the_command_line_writes_what_transformers_loads(name: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo.base())
    checkpoint.save(_tiny(len(tokenizer)), tokenizer, checkpoint.ScorerInfo(), tmp_path / "start")
    prompt = demo.chat("How was the cafe?")
    records = [
        {"prompt": prompt, "completion": text, "label": label, "chosen": text, "rejected": "No."}
        for text, label in (("The price was fair, guys.", 1.0), ("I regret it.", -1.0))
    ]
    data.write(tmp_path / "data.jsonl", records * 8)
    options = {
        "--base": demo.base(),
        "--scorer": tmp_path / "start",
        "--data": tmp_path / "data.jsonl",
        "--out": tmp_path / "out",
        "--epochs": 1,
        "--batch-size": 4,
    }
    training.main([name, *(str(part) for option in options.items() for part in option)])
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")(prompt, return_tensors="pt").input_ids
    assert model(ids).logits.shape == (1, ids.shape[1], 1)
    info = checkpoint.read_info(tmp_path / "out")
    assert info.objective == OBJECTIVES[name]().name
    assert info.base_model == str(demo.base())
    assert info.deviation > 0
    assert (tmp_path / "out" / "README.md").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"start", "data.jsonl", "out"}
