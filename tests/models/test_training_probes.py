"""Training of probes: what they learn, what they score, and what they refuse."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab_models import base_weights, checkpoint, data, demo, features, manifest, probe
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.demo import rollouts
from trimtab_models.features import States
from trimtab_models.objectives import OBJECTIVES
from trimtab_models.publish import publish
from trimtab_models.report.__main__ import main as report
from trimtab_models.rows import Rollout, pad
from trimtab_models.scoring import prefix_scores
from trimtab_models.training import initial, probes
from trimtab_models.training.__main__ import main
from trimtab_models.training.config import TrainConfig, load
from trimtab_models.training.saves import SafeTrainer

PROBED = [name for name, make in OBJECTIVES.items() if probes.can_train(make())]


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The demo's answers to 40 prompts with their formality, pairs and rankings of them."""
    torch.set_num_threads(1)
    top = tmp_path_factory.mktemp("probes")
    tokenizer = AutoTokenizer.from_pretrained(demo.base())
    model = AutoModelForCausalLM.from_pretrained(demo.base(), dtype=torch.float32)
    prompts = [demo.chat(prompt) for prompt in demo.prompts("train", 40, 0)]
    sampled = rollouts.sample(model, tokenizer, prompts * 8, seed=0, most_tokens=32)
    records = rollouts.label(sampled, demo.rewards["formality"])
    for record in records:  # any rewards of prefixes will do
        length = len(record["completion_token_ids"])
        record["prefix_rewards"] = [record["reward"] * (t + 1) / length for t in range(length)]
    data.write(top / "rollouts.jsonl", records)
    data.write(top / "pairs.jsonl", data.preferences(records, 40, 0))
    data.write(top / "ranked.jsonl", data.rankings(records, 3, 0)[:20])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(top / "cache"))
        yield top


def _call(place: Path, out: Path, objective: str, *sets: str) -> int:
    kind = "pairs" if objective == "dpo" else OBJECTIVES[objective]().data
    overrides = ["base=demo", f"data={place / kind}.jsonl", f"out={out}", "probe.rank=8"]
    overrides += ["trainer.disable_tqdm=true", *sets]
    return main([objective, *(part for one in overrides for part in ("--set", one))])


def _train(place: Path, out: Path, objective: str, *sets: str) -> Path:
    assert _call(place, out, objective, *sets) == 0
    return out


def _log(out: Path, key: str) -> list[float]:
    lines = (out.with_name(f"{out.name}.run") / "log.jsonl").read_text().splitlines()
    return [entry[key] for entry in map(json.loads, lines) if key in entry]


def _random_probe(outputs: int, seed: int) -> Any:
    torch.manual_seed(seed)
    model = probe.new(demo.base(), outputs=outputs, rank=3, width=8)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def _answers(seed: int, n: int = 9) -> list[Rollout]:
    draw = random.Random(seed)
    ids = [[draw.randrange(4, 1000) for _ in range(draw.randint(1, 9))] for _ in range(2 * n)]
    return [Rollout(ids[2 * i], ids[2 * i + 1], draw.random()) for i in range(n)]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["cd-fudge", "distribution"])
def test_it_learns_on_prompts_that_it_has_not_seen(
    place: Path, tmp_path: Path, objective: str
) -> None:
    out = _train(place, tmp_path / "out", objective, "validation=0.25")
    losses = _log(out, "loss")
    assert sum(losses[-3:]) < sum(losses[:3])
    model, info = checkpoint.load(out)
    manifest.verify(out)
    assert (info.family, info.base_model) == ("probe", "trimtab-demo-base")
    assert info.objective == OBJECTIVES[objective]().name
    assert info.is_value
    assert (info.support is not None) == (objective == "distribution")
    auc = json.loads((out / "report.json").read_text())["prefix_auc"]["mean"]
    assert auc["mean"] - 3 * auc["standard_error"] > 0.5
    assert info.prefix_auc == pytest.approx(auc["mean"], abs=1e-4)
    # The mean and deviation are those of the scores of the validation's answers.
    tokenizer = AutoTokenizer.from_pretrained(out)
    _, held = data.split(data.load(place / "rollouts.jsonl", "rollouts", tokenizer), 0.25, 0)
    scores = torch.cat(prefix_scores(model, info, held, 0, states=States(demo.base())))
    assert info.mean == pytest.approx(float(scores.mean()), abs=1e-5)
    assert info.deviation == pytest.approx(float(scores.std()), rel=1e-4)


@pytest.mark.parametrize("objective", PROBED)
def test_every_objective_that_claims_it_trains_one(
    place: Path, tmp_path: Path, objective: str
) -> None:
    sets = ["trainer.max_steps=2", "batch_size=4"]
    if objective == "fudge":
        sets.append("options.threshold=0")
    out = _train(place, tmp_path / "out", objective, *sets)
    model, info = checkpoint.load(out)
    assert info.family == "probe"
    assert not info.ahead, "a probe has no rows of its own for each token"
    assert model.config.outputs == (51 if "distribution" in objective else 1)
    assert any(part.any() for part in (*model.level.parameters(), *model.factors.parameters()))


@pytest.mark.parametrize(
    ("fields", "outputs"),
    [
        ({}, 1),
        ({"link": "log_sigmoid"}, 1),
        ({"adds_up": True}, 1),
        ({"support": (-1.0, 2.0)}, 5),
    ],
)
def test_scores_are_those_of_each_prefix_alone(fields: dict[str, Any], outputs: int) -> None:
    model = _random_probe(outputs, seed=1)
    answers = _answers(seed=2)
    info = ScorerInfo(family="probe", **fields)
    every = prefix_scores(model, info, answers, 0, states=States(demo.base()), batch_size=4)
    base = AutoModelForCausalLM.from_pretrained(demo.base(), dtype=torch.float32)
    embedding = base.get_output_embeddings().weight.detach()
    embedding = embedding / embedding.square().mean().sqrt()
    for answer, scores in zip(answers, every, strict=True):
        seen, total = [], 0.0
        for t, token in enumerate(answer.completion):
            ids = torch.tensor([answer.prompt + answer.completion[:t]])
            with torch.no_grad():
                seen.append(base.model(input_ids=ids).last_hidden_state[0, -1])
                states = torch.stack((seen[-1], torch.stack(seen).mean(0)))
                output = model(states, model.table(embedding[token]))
            one = float(output[0])
            if "link" in fields:
                one = -math.log1p(math.exp(-one))
            if "support" in fields:
                one = float(output.softmax(-1) @ torch.linspace(-1, 2, 5))
            total += one
            expected = total if "adds_up" in fields else one
            assert float(scores[t]) == pytest.approx(expected, abs=1e-2)
        assert len(scores) == len(answer.completion)


def test_outputs_are_where_objectives_read_them() -> None:
    answers = _answers(seed=3)
    states = States(demo.base())
    states.add(answers)
    model = _random_probe(2, seed=4)
    rows, read = pad(answers, 0), states.batch(answers)
    table = model.table(states.embedding())
    expected = model.every(probe.running(read), table)  # [rows, steps, vocab, 2]
    mask = rows.mask()
    after = rows.gather(probes.reader("distribution", states)(model, rows, read))
    taken = rows.tokens()[..., None, None].expand(-1, -1, 1, 2)
    torch.testing.assert_close(after[mask], expected.gather(2, taken)[:, :, 0][mask])
    apart = rows.gather(probes.reader("scalars", states)(model, rows, read))
    torch.testing.assert_close(apart[..., 0][mask], after[..., 0][mask])
    torch.testing.assert_close(
        apart[..., 1][mask], model.parts(probe.running(read))[0][..., 1][mask]
    )
    both = probes.reader("vocabulary+value", states)(model, rows, read)
    torch.testing.assert_close(rows.before(both)[..., :-1][mask], expected[..., 0][mask])
    level = model.parts(probe.running(read))[0][..., 1]
    torch.testing.assert_close(rows.before(both)[..., -1][mask], level[mask])


@pytest.mark.parametrize(
    ("name", "options"),
    [("dueling-q", {}), ("dueling-q", {"centred": True}), ("value-advantage", {}), ("ilql", {})],
)
def test_folded_parts_score_as_the_parts(name: str, options: dict[str, bool]) -> None:
    answers = _answers(seed=5)
    states = States(demo.base())
    states.add(answers)
    model, objective = _random_probe(2, seed=6), OBJECTIVES[name](**options)
    rows, read = pad(answers, 0), states.batch(answers)
    parts = probes.reader("vocabulary+value", states)(model, rows, read)
    expected = rows.chosen(objective.combine(parts))
    folded = probes.fold(model, objective, states)
    assert folded.config.outputs == 1
    scores = folded(probe.running(read), folded.table(states.embedding())[rows.tokens()])[..., 0]
    torch.testing.assert_close(scores[rows.mask()], expected[rows.mask()], rtol=1e-3, atol=1e-3)


def test_what_was_interrupted_goes_on_to_the_same_bits(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = ["epochs=2", "logging_steps=2", "save_steps=4"]
    whole = _train(place, tmp_path / "whole", "td-lambda", *sets)
    save = SafeTrainer._save_checkpoint

    def failing(self: Any, *arguments: Any) -> None:
        if self.state.global_step == 12:
            raise KeyboardInterrupt
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SafeTrainer, "_save_checkpoint", failing)
        assert _call(place, tmp_path / "cut", "td-lambda", *sets) == 130
    monkeypatch.setattr(features, "_backbone", None)  # the states are known
    cut = _train(place, tmp_path / "cut", "td-lambda", *sets)
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert _log(cut, "loss") == _log(whole, "loss")


@pytest.mark.parametrize(
    ("objective", "sets", "says"),
    [
        ("td-lambda", ["scorer=x"], "x is neither a checkpoint directory nor a hub name"),
        ("td-lambda", [f"scorer={demo.base()}"], "is no probe, and a probe has no other network"),
        ("td-lambda", ["layers=1"], "probe: a probe has no network of its own; leave out layers"),
        ("td-lambda", ["lora.r=2"], "leave out lora"),
        ("td-lambda", ["gradient_checkpointing=true"], "leave out gradient_checkpointing"),
        ("genarm", [], "probe: genarm trains a whole language model, and no probe"),
        ("dpo", [], "probe: dpo trains a whole language model, and no probe"),
        ("td-lambda", ["probe.r=2"], "probe.r: no such setting; expected one of rank"),
        ("td-lambda", ["probe.rank=0"], "probe.rank: input should be greater than 0"),
    ],
)
def test_what_does_not_go_with_it_is_one_line(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    objective: str,
    sets: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between attempts to reach the hub
    assert _call(place, tmp_path / "out", objective, *sets) == 1
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1


def _guided(place: Path, path: Path) -> Path:
    """The answers, every second one as if guided at a strength of 2."""
    records = data.read(place / "rollouts.jsonl")
    for record in records[::2]:
        count = len(record["completion_token_ids"])
        record |= {"strength": 2.0, "log_ratios": [0.01] * count}
    data.write(path, records)
    return path


def _continued(first: Path, objective: str, *sets: str) -> tuple[TrainConfig, Any]:
    overrides = ["base=demo", "data=x", "out=x", f"scorer={first}", *sets]
    config = load(None, overrides, objective)
    assert isinstance(config, TrainConfig)
    config = initial.with_probe(config)
    return config, initial.network(config, initial.objective(config))


def test_a_probe_is_refined_from_its_own_weights(place: Path, tmp_path: Path) -> None:
    first = _train(place, tmp_path / "first", "distribution", "trainer.max_steps=2")
    config, model = _continued(first, "q-distribution")
    assert config.probe is not None
    assert (config.probe.rank, config.epochs, config.learning_rate) == (8, 8, 2e-3)
    before = checkpoint.load(first)[0].state_dict()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    sets = [f"data={_guided(place, tmp_path / 'guided.jsonl')}", f"scorer={first}"]
    second = _train(place, tmp_path / "second", "distribution", *sets, "trainer.max_steps=2")
    model, info = checkpoint.load(second)
    assert info.support == checkpoint.read_info(first).support
    assert model.config.outputs == 51
    assert not torch.equal(model.trunk[0].weight, before["trunk.0.weight"])


def test_a_probe_of_another_objective_keeps_all_but_its_outputs(
    place: Path, tmp_path: Path
) -> None:
    first = _train(place, tmp_path / "first", "td-lambda", "trainer.max_steps=2")
    _, model = _continued(first, "distribution", "probe.dropout=0.1")
    before, after = checkpoint.load(first)[0].state_dict(), model.state_dict()
    for name in ("trunk.0.weight", "trunk.0.bias", "tokens.weight"):
        assert torch.equal(after[name], before[name])
    assert (model.config.outputs, model.config.dropout) == (51, 0.1)
    assert not any(after[f"{part}.weight"].any() for part in ("level", "factors"))
    with pytest.raises(ValueError, match=r"probe\.rank: .* has 8, not 4"):
        _continued(first, "td-lambda", "probe.rank=4")
    with pytest.raises(ValueError, match="a probe has no network of its own; leave out layers"):
        _continued(first, "td-lambda", "layers=1")


def test_a_probe_needs_the_states_of_its_own_base(tmp_path: Path) -> None:
    model, info = _random_probe(1, seed=7), ScorerInfo(family="probe")
    with pytest.raises(ValueError, match="pass `states`"):
        prefix_scores(model, info, _answers(8), 0)
    model.config.base = "another"
    with pytest.raises(ValueError, match="this probe reads the states of another base"):
        prefix_scores(model, info, _answers(8), 0, states=States(demo.base()))


def test_its_report_and_its_publication(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = _train(place, tmp_path / "out", "cd-fudge", "epochs=1")
    assert checkpoint.read_info(out).prefix_auc is None
    report([str(out), "--rollouts", str(place / "rollouts.jsonl")])
    assert "prefix-AUC" in capsys.readouterr().out
    assert checkpoint.read_info(out).prefix_auc is not None
    publish(out, str(tmp_path / "public"))
    loaded, info = checkpoint.load(tmp_path / "public")
    assert loaded.config.base == base_weights.fingerprint(demo.base())
    assert info.base_model == "trimtab-demo-base"
    card = (tmp_path / "public" / "README.md").read_text()
    assert f"| fingerprint of the base | `{loaded.config.base}` |" in card
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata == {"library_name": "trimtab", "tags": ["trimtab", "scorer"]}
