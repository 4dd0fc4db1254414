"""Whole runs, small: from data to a checkpoint that transformers and PEFT load by themselves."""

import json
import logging
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    set_seed,
)

from trimtab_models import checkpoint, data, demo, manifest, report
from trimtab_models.objectives import OBJECTIVES
from trimtab_models.report import Report
from trimtab_models.rows import Rollout, pad
from trimtab_models.scoring import prefix_scores
from trimtab_models.training.__main__ import main
from trimtab_models.training.saves import SafeTrainer
from trimtab_models.training.trainer import reader

pytestmark = pytest.mark.slow  # trains

WORDS = ["good", "fine", "nice", "bad", "poor", "sad"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny language models and data of every kind."""
    top = tmp_path_factory.mktemp("training")
    tokenizer = AutoTokenizer.from_pretrained(demo.base())
    set_seed(0)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 2}
    llama = LlamaConfig(
        **sizes,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
        classifier_dropout=0.0,  # two processes drop other units than one
    )
    opt = OPTConfig(**sizes, ffn_dim=16, num_attention_heads=2, word_embed_proj_dim=16)
    for name, model in (("llama", LlamaForCausalLM(llama)), ("opt", OPTForCausalLM(opt))):
        model.save_pretrained(top / name)
        tokenizer.save_pretrained(top / name)
    draw = random.Random(0)
    rows = []
    for n in range(48):
        words = draw.choices(WORDS, k=draw.randint(2, 5))
        reward = sum(1 if WORDS.index(word) < 3 else -1 for word in words) / 5
        prompt = f"How was it, {n % 12}?"
        rows.append({"prompt": prompt, "completion": " ".join(words), "reward": reward})
    data.write(top / "rollouts.jsonl", rows)
    pairs = [{"prompt": r["prompt"], "chosen": "good", "rejected": r["completion"]} for r in rows]
    data.write(top / "pairs.jsonl", pairs)
    return top


def _train(place: Path, out: Path, objective: str, *sets: str) -> Path:
    """One call of the command line."""
    kind = "pairs" if objective == "dpo" else OBJECTIVES[objective]().data
    overrides = [
        f"base={place / 'llama'}",
        f"data={place / kind}.jsonl",
        f"out={out}",
        "batch_size=8",
        "learning_rate=1e-2",
        "logging_steps=2",
        "save_steps=4",
        "trainer.disable_tqdm=true",
        "trainer.warmup_steps=0",
        *sets,
    ]
    arguments = [objective, *(part for one in overrides for part in ("--set", one))]
    assert main(arguments) == 0
    return out


def _log(out: Path, key: str) -> list[float]:
    lines = (out.with_name(f"{out.name}.run") / "log.jsonl").read_text().splitlines()
    return [entry[key] for entry in map(json.loads, lines) if key in entry]


def _ids(place: Path) -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(place / "llama")
    return torch.tensor([tokenizer("How was it? good bad fine").input_ids])


def _outputs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize(
    ("objective", "auto", "width"),
    [
        ("td-lambda", AutoModelForTokenClassification, 1),
        ("bradley-terry", AutoModelForTokenClassification, 1),
        ("distribution", AutoModelForTokenClassification, OBJECTIVES["distribution"]().bins),
        ("q-distribution", AutoModelForTokenClassification, 1024 * 52),
        ("q-exact", AutoModelForCausalLM, 1024),
        ("value-advantage", AutoModelForCausalLM, 1024),
        ("genarm", AutoModelForCausalLM, 1024),
    ],
)
def test_transformers_alone_loads_it_with_the_same_numbers(
    place: Path, tmp_path: Path, objective: str, auto: Any, width: int
) -> None:
    out = _train(place, tmp_path / "out", objective, "epochs=4")
    manifest.verify(out)
    ours, info = checkpoint.load(out)
    theirs = auto.from_pretrained(out)
    ids = _ids(place)
    outputs = _outputs(theirs, ids)
    assert outputs.shape == (*ids.shape, width)
    assert torch.equal(outputs, _outputs(ours, ids))
    assert outputs.abs().max() > 0, "nothing was learnt"
    assert info.objective == OBJECTIVES[objective]().name
    assert info.base_model == str(place / "llama")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.run"}
    losses = _log(out, "loss")
    assert sum(losses[-3:]) < sum(losses[:3])
    # The mean and deviation are those of the scores, as the trained network gives them.
    tokenizer = AutoTokenizer.from_pretrained(out)
    kind = OBJECTIVES[objective]().data
    if kind == "rollouts":
        rollouts = data.load(place / "rollouts.jsonl", kind, tokenizer)
        scores = torch.cat(prefix_scores(ours, info, rollouts, tokenizer.pad_token_id))
        assert info.mean == pytest.approx(float(scores.mean()), abs=1e-5)
        assert info.deviation == pytest.approx(float(scores.std()), rel=1e-4)


def test_a_family_without_token_classes_is_a_sequence_classifier(
    place: Path, tmp_path: Path
) -> None:
    out = _train(place, tmp_path / "out", "td-lambda", f"base={place / 'opt'}")
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert type(model).__name__ == "OPTForSequenceClassification"
    tokenizer = AutoTokenizer.from_pretrained(out)
    rollouts = data.load(place / "rollouts.jsonl", "rollouts", tokenizer)[:3]
    scores = prefix_scores(model, checkpoint.read_info(out), rollouts, 0)
    for rollout, row in zip(rollouts, scores, strict=True):
        ids = torch.tensor([rollout.prompt + rollout.completion])
        assert row[-1].item() == pytest.approx(_outputs(model, ids)[0, 0].item(), abs=1e-5)
    # What training read of it is the head at every position.
    rows = pad(rollouts, 0)
    with torch.no_grad():
        read = rows.gather(reader(model, 0)(model, rows))[..., 0]
    for i, row in enumerate(scores):
        assert torch.allclose(read[i, : len(row)], row, atol=1e-5)


@pytest.mark.parametrize(
    ("objective", "auto"),
    [
        ("td-lambda", peft.AutoPeftModelForTokenClassification),
        ("q-exact", peft.AutoPeftModelForCausalLM),
        ("genarm", peft.AutoPeftModelForCausalLM),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True:UserWarning")
def test_peft_alone_loads_an_adapter_with_the_same_numbers(
    place: Path, tmp_path: Path, objective: str, auto: Any
) -> None:
    sets = ("epochs=2", "lora.r=2")
    merged = _train(place, tmp_path / "merged", objective, *sets)
    adapter = _train(place, tmp_path / "adapter", objective, *sets, "lora.merge=false")
    assert (adapter / "adapter_model.safetensors").exists()
    assert not (adapter / "model.safetensors").exists()
    labels = {"num_labels": 1} if objective == "td-lambda" else {}
    theirs = auto.from_pretrained(adapter, **labels)
    ids = _ids(place)
    whole = _outputs(checkpoint.load(merged)[0], ids)
    assert torch.allclose(whole, _outputs(checkpoint.load(adapter)[0], ids), atol=1e-6)
    assert torch.allclose(whole, _outputs(theirs, ids), atol=1e-5)
    untrained = _outputs(LlamaForCausalLM.from_pretrained(place / "llama"), ids)
    assert whole.shape != untrained.shape or not torch.allclose(whole, untrained, atol=1e-3)
    one, two = (checkpoint.read_info(path) for path in (merged, adapter))
    assert one.mean == pytest.approx(two.mean, abs=1e-6)
    assert one.deviation == pytest.approx(two.deviation, rel=1e-4)
    assert one.model_copy(update={"mean": two.mean, "deviation": two.deviation}) == two


def test_a_folded_head_cannot_be_an_adapter(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError):
        _train(place, tmp_path / "out", "ilql", "lora.merge=false")
    assert "lora.merge: ilql is folded" in capsys.readouterr().err


def test_dpo_makes_a_log_ratio_scorer(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)  # a reference that is given by where the command was
    out = _train(place, tmp_path / "out", "dpo", "epochs=4", "options.beta=0.5", "base=llama")
    model, info = checkpoint.load(out)
    assert (info.family, info.alpha, info.reference) == ("log_ratio", 0.5, str(place / "llama"))
    tokenizer = AutoTokenizer.from_pretrained(out)
    reference = AutoModelForCausalLM.from_pretrained(place / "llama")
    items = data.load(place / "pairs.jsonl", "pairs", tokenizer)
    items = [item for item in items if item.chosen != item.rejected]

    def rewards(sides: list[list[int]]) -> torch.Tensor:
        rollouts = [Rollout(i.prompt, side, 0.0) for i, side in zip(items, sides, strict=True)]
        return torch.stack(
            [s[-1] for s in prefix_scores(model, info, rollouts, 0, reference=reference)]
        )

    margins = rewards([i.chosen for i in items]) - rewards([i.rejected for i in items])
    assert (margins > 0).float().mean() > 0.9
    again = _train(place, tmp_path / "lora", "dpo", "epochs=4", "lora.r=2", "lora.merge=false")
    assert checkpoint.read_info(again).family == "log_ratio"
    peft.AutoPeftModelForCausalLM.from_pretrained(again)


@pytest.mark.parametrize(
    ("objective", "sets", "weights"),
    [
        ("dpo", [], "model.safetensors"),
        ("td-lambda", ["lora.r=2", "lora.dropout=0.1"], "model.safetensors"),
        ("q-exact", ["lora.r=2", "lora.merge=false"], "adapter_model.safetensors"),
    ],
)
def test_what_was_interrupted_goes_on_to_the_same_bits(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    objective: str,
    sets: list[str],
    weights: str,
) -> None:
    sets = ["epochs=2", *sets]
    whole = _train(place, tmp_path / "whole", objective, *sets)
    save = SafeTrainer._save_checkpoint

    def failing(self: Any, *arguments: Any) -> None:
        if self.state.global_step == 8:
            raise KeyboardInterrupt
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SafeTrainer, "_save_checkpoint", failing)
        with pytest.raises(AssertionError):
            _train(place, tmp_path / "cut", objective, *sets)
    assert "interrupted; run the same command to resume" in capsys.readouterr().err
    cut = _train(place, tmp_path / "cut", objective, *sets)
    assert (cut / weights).read_bytes() == (whole / weights).read_bytes()
    assert _log(cut, "loss") == _log(whole, "loss")


def test_the_learning_rate_of_least_validation_loss_is_kept(
    place: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report, "warning", lambda result: f"no use for {result.objective}")
    sets = ("validation=0.25", "epochs=3")
    with caplog.at_level(logging.WARNING, "trimtab_models"):
        chosen = _train(place, tmp_path / "out", "td-lambda", *sets, "learning_rate=[1e-6, 1e-2]")
    assert "learning rate 0.01: validation loss" in caplog.text
    assert caplog.messages[0].startswith("steps: ")
    assert caplog.messages[-1] == f"no use for {checkpoint.read_info(chosen).objective}"
    alone = _train(place, tmp_path / "alone", "td-lambda", *sets, "learning_rate=1e-2")
    assert (chosen / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()
    assert (chosen / "report.md").exists()
    assert checkpoint.read_info(chosen).prefix_auc is not None
    manifest.verify(chosen)
    rates = {path.name for path in (tmp_path / "out.run").iterdir()}
    assert rates == {"rate-1e-06", "rate-0.01"}


def test_values_choose_their_learning_rate_on_half_completed_answers(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the mean squared error, which is checked by hand."""
    tokenizer = AutoTokenizer.from_pretrained(place / "llama")
    ids = {
        name: tokenizer(text).input_ids for name, text in (("prompt", "How"), ("prefix", "good"))
    }
    figures = {"fraction": 0.5, "reward": 9.0, "returns": [9.0], "mean": 9.0, "standard_error": 0.0}
    halves = [{f"{name}_token_ids": part for name, part in ids.items()} | figures]
    data.write(tmp_path / "halves.jsonl", halves)
    sets = ("epochs=2", "validation=0.25", f"completions={tmp_path / 'halves.jsonl'}")
    rates = "learning_rate=[1e-6, 1e-2]"
    with caplog.at_level(logging.WARNING, "trimtab_models"):
        out = _train(place, tmp_path / "out", "td-lambda", *sets, rates)
    result = Report.model_validate_json((out / "report.json").read_text())
    assert result.rates is not None
    assert result.rates.by == "value MSE"
    model = AutoModelForTokenClassification.from_pretrained(out)
    value = _outputs(model, torch.tensor([ids["prompt"] + ids["prefix"]]))[0, -1, 0].item()
    errors = result.rates.figures
    assert errors[result.rates.chosen] == pytest.approx((value - 9) ** 2, rel=1e-4)
    assert errors[result.rates.chosen] == min(errors.values()) < max(errors.values())
    for text in (out / "report.md", out / "README.md"):
        assert f"{result.rates.chosen:g}, by the value MSE of half-completed" in text.read_text()
    assert "learning rate 1e-06: value MSE" in caplog.text


def _chosen(out: Path) -> report.Rates:
    rates = Report.model_validate_json((out / "report.json").read_text()).rates
    assert rates is not None
    return rates


@pytest.mark.parametrize(
    "options", [["options.threshold=0"], [], ["options.threshold=0", "ensemble=3"]]
)
def test_fudge_chooses_its_learning_rate_by_accuracy(
    place: Path, tmp_path: Path, options: list[str]
) -> None:
    """The share of prefixes for which log P > log ½ is right about the answer's attribute.

    log P of an ensemble is the mean over its heads.
    """
    sets = ["epochs=2", "validation=0.25", "learning_rate=[1e-6, 1e-2]"]
    if not options:
        rows = data.read(place / "rollouts.jsonl")
        data.write(tmp_path / "signs.jsonl", [r | {"reward": float(r["reward"] > 0)} for r in rows])
        sets.append(f"data={tmp_path / 'signs.jsonl'}")
    out = _train(place, tmp_path / "out", "fudge", *options, *sets)
    rates = _chosen(out)
    assert rates.by == "accuracy"
    assert rates.figures[rates.chosen] == max(rates.figures.values())
    tokenizer = AutoTokenizer.from_pretrained(out)
    _, held_out = data.split(data.load(place / "rollouts.jsonl", "rollouts", tokenizer), 0.25, 0)
    model, right = AutoModelForTokenClassification.from_pretrained(out), list[bool]()
    for item in held_out:
        heads = _outputs(model, torch.tensor([item.prompt + item.completion]))[0]
        log_p = heads.sigmoid().log().mean(-1)[len(item.prompt) :]
        right += [(one > math.log(0.5)) == (item.label > 0) for one in log_p.tolist()]
    assert rates.figures[rates.chosen] == pytest.approx(sum(right) / len(right))


def test_dpo_chooses_its_learning_rate_by_the_margin(place: Path, tmp_path: Path) -> None:
    """The mean of b·log π/π_ref of the better side, less that of the worse."""
    sets = ("epochs=2", "validation=0.25", "options.beta=0.5", "learning_rate=[1e-6, 1e-2]")
    out = _train(place, tmp_path / "out", "dpo", *sets)
    rates = _chosen(out)
    assert rates.by == "margin"
    assert rates.chosen == 1e-2
    model, info = checkpoint.load(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    _, held_out = data.split(data.load(place / "pairs.jsonl", "pairs", tokenizer), 0.25, 0)
    reference = AutoModelForCausalLM.from_pretrained(place / "llama")
    sides = [Rollout(i.prompt, side, 0.0) for i in held_out for side in (i.chosen, i.rejected)]
    scores = prefix_scores(model, info, sides, 0, reference=reference)
    ends = torch.stack([s[-1] for s in scores]).view(-1, 2)
    # TRL averages over batches of at most eight pairs
    parts = [part.mean() for part in (ends[:, 0] - ends[:, 1]).split(8)]
    assert rates.figures[1e-2] == pytest.approx(torch.stack(parts).mean().item(), rel=1e-3)


def test_early_stopping_keeps_the_best(place: Path, tmp_path: Path) -> None:
    sets = ("validation=0.25", "epochs=60", "early_stopping=2", "learning_rate=3e-2")
    out = _train(place, tmp_path / "out", "cd-fudge", *sets)
    losses = _log(out, "eval_loss")
    assert len(losses) < 60 * 5 // 4, "it never stopped"
    assert min(losses) == losses[-3], "patience is 2"
    tokenizer = AutoTokenizer.from_pretrained(out)
    items = data.load(place / "rollouts.jsonl", "rollouts", tokenizer)
    _, validation = data.split(items, 0.25, 0)
    model, info = checkpoint.load(out)
    scores = prefix_scores(model, info, validation, 0)
    errors = [(s - item.label).square() for s, item in zip(scores, validation, strict=True)]
    parts = [torch.cat(errors[i : i + 8]) for i in range(0, len(errors), 8)]
    mean = sum(p.mean() * n for p, n in zip(parts, (8, 4), strict=True)) / 12
    assert float(mean) == pytest.approx(min(losses), abs=1e-4)


def test_half_precision_gradient_checkpoints_and_tensorboard(place: Path, tmp_path: Path) -> None:
    plain = _train(place, tmp_path / "plain", "td-lambda")
    saving = _train(place, tmp_path / "saving", "td-lambda", "gradient_checkpointing=true")
    assert _log(saving, "loss") == pytest.approx(_log(plain, "loss"), rel=1e-5)
    half = _train(place, tmp_path / "half", "td-lambda", "bf16=true", "tensorboard=true")
    assert _log(half, "loss") == pytest.approx(_log(plain, "loss"), rel=0.1)
    assert _log(half, "loss") != _log(plain, "loss")
    assert list((tmp_path / "half.run").rglob("events.out.tfevents*"))
    assert checkpoint.load(half)[0].dtype == torch.float32


def test_a_checkpoint_says_whether_it_scores_the_return_to_go(place: Path, tmp_path: Path) -> None:
    rows = data.read(place / "rollouts.jsonl")
    for n, row in enumerate(rows):
        end = len(row["completion"])
        first = {"start": 0, "end": 2, "value": n % 3, "aspect": "begin"}
        row["spans"] = [first, {"start": 0, "end": end, "value": 1, "aspect": "end"}]
    data.write(tmp_path / "steps.jsonl", rows)
    sets = [f"data={tmp_path / 'steps.jsonl'}", "trainer.max_steps=2", "validation=0.25"]
    marks = {}
    for objective, more in (
        ("td-lambda", []),
        ("td-lambda", ["aspect=begin"]),
        ("gains", ["options.discount=1"]),
    ):
        out = _train(place, tmp_path / f"out-{len(marks)}", objective, *sets, *more)
        marks[out.name] = checkpoint.read_info(out).to_go
    assert list(marks.values()) == [True, True, False]
    plain = _train(place, tmp_path / "plain", "td-lambda", "trainer.max_steps=2")
    assert not checkpoint.read_info(plain).to_go


def test_fewer_layers(place: Path, tmp_path: Path) -> None:
    out = _train(place, tmp_path / "out", "td-lambda", "layers=1")
    model, _ = checkpoint.load(out)
    assert len(model.model.layers) == model.config.num_hidden_layers == 1


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["data=nowhere.jsonl"], "nowhere.jsonl"),
        (["layers=3"], "layers: the network has 2, not 3."),
        (["early_stopping=1"], "early_stopping needs validation data."),
        (["learning_rate=[1e-3, 1e-4]"], "a list needs `validation` to choose from it"),
        (["trainer.learning_rate=1"], "trainer.learning_rate: set `learning_rate` instead."),
        (["trainer.warmup_step=1"], "no such field; did you mean 'warmup_steps'?"),
        (["save_steps=3"], "save_steps (3) must be a multiple of logging_steps (2)."),
        (["base=/no/where"], "/no/where"),
    ],
)
def test_what_does_not_go_is_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], sets: list[str], says: str
) -> None:
    with pytest.raises(AssertionError):
        _train(place, tmp_path / "out", "td-lambda", *sets)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trimtab: ")]
    assert len(lines) == 1
    assert says in lines[0]
    assert not (tmp_path / "out").exists()


def test_two_processes_train_one_scorer(place: Path, tmp_path: Path) -> None:
    """Two batches of four on two processes are a batch of eight; the main one alone writes."""
    sets = ["batch_size=4", "learning_rate=1e-2", "logging_steps=2", "save_steps=4"]
    sets += [f"base={place / 'llama'}", f"data={place / 'pairs.jsonl'}", f"out={tmp_path / 'two'}"]
    sets += ["trainer={disable_tqdm: true, warmup_steps: 0}"]
    launch: list[Any] = [Path(sys.executable).with_name("accelerate"), "launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    launch += ["--dynamo_backend", "no", "--main_process_port", "0"]
    launch += ["-m", "trimtab_models.training", "bradley-terry-full"]
    command = [*launch, *(part for one in sets for part in ("--set", one))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    manifest.verify(tmp_path / "two")
    one = _train(place, tmp_path / "one", "bradley-terry-full")
    assert _log(tmp_path / "two", "loss") == pytest.approx(_log(one, "loss"), abs=1e-4)
    ids = _ids(place)
    outputs, expected = (
        _outputs(checkpoint.load(path)[0], ids) for path in (tmp_path / "two", one)
    )
    # The loss does not see a constant, which Adam moves by the rounding of its gradient.
    assert torch.allclose(outputs - outputs.mean(), expected - expected.mean(), atol=1e-3)
    assert expected.std() > 0.01, "nothing to compare"
