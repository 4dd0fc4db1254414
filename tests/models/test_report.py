"""Reports: a real scorer and a random one, the files, and the command line."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, set_seed

from trimtab_models import card, checkpoint, data, demo, manifest
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.data import Record
from trimtab_models.demo import rollouts as demo_rollouts
from trimtab_models.networks import scalar_head
from trimtab_models.objectives import OBJECTIVES
from trimtab_models.report import Report, plots, summary, update, validate, warning, write
from trimtab_models.report.__main__ import main
from trimtab_models.report.text import markdown
from trimtab_models.rows import Pair, Ranked, Rollout, remaining

PROMPTS, COMPLETIONS = 12, 8


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo.base())


@pytest.fixture(scope="module")
def records(tokenizer: Any) -> list[Record]:
    """A few answers of the demo's base to prompts that no scorer was trained on."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(demo.base(), dtype=torch.float32)
    prompts = [demo.chat(text) for text in demo.prompts("test", PROMPTS)] * COMPLETIONS
    sampled = demo_rollouts.sample(model, tokenizer, prompts, seed=0)
    reward = demo.rewards["sentiment"]
    return [{**r, "reward": reward(r["prompt"], r["completion"])} for r in sampled]


@pytest.fixture(scope="module")
def half_completed(records: list[Record]) -> list[Record]:
    """Half-completed answers; their returns are made up around the reward of the whole."""
    draw = np.random.default_rng(0)
    made = []
    for record in records:
        for fraction in (0.25, 0.5, 0.75):
            ids = record["completion_token_ids"]
            noise = draw.normal(size=4) * (1 - fraction)
            returns = record["reward"] + noise
            made.append(
                {
                    "prompt_token_ids": record["prompt_token_ids"],
                    "prefix_token_ids": ids[: max(1, int(fraction * len(ids)))],
                    "fraction": fraction,
                    "reward": record["reward"],
                    "returns": returns.tolist(),
                    "mean": float(returns.mean()),
                    "standard_error": float(returns.std(ddof=1) / 2),
                }
            )
    return made


@pytest.fixture(scope="module")
def items(records: list[Record]) -> list[Rollout]:
    return [Rollout(r["prompt_token_ids"], r["completion_token_ids"], r["reward"]) for r in records]


@pytest.fixture(scope="module")
def report(items: list[Rollout], half_completed: list[Record]) -> Report:
    """That of the demo's sentiment scorer."""
    model, info = checkpoint.load(demo.scorers()["sentiment"])
    return validate(model, info, items, half_completed, 0)


def test_a_return_to_go_is_reported_with_the_rewards_so_far(
    items: list[Rollout], half_completed: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores that know what is still to come know, with what came before, the whole return."""
    draw = np.random.default_rng(0)
    steps = [one._replace(step_rewards=draw.normal(size=len(one.completion))) for one in items]
    steps = [one._replace(label=float(sum(one.step_rewards))) for one in steps]
    steps = [one._replace(step_rewards=tuple(one.step_rewards)) for one in steps]
    exact = [torch.tensor(remaining(one)) for one in steps]
    module = importlib.import_module("trimtab_models.report.validate")
    monkeypatch.setattr(module, "prefix_scores", lambda *_, **__: exact)
    for to_go in (True, False):
        info = ScorerInfo(to_go=to_go)
        report = validate(None, info, steps, half_completed if to_go else None, 0)
        assert (report.prefix_auc.mean.mean == pytest.approx(1.0)) == to_go
        assert report.values is None


@pytest.mark.slow
def test_the_demo_scorer_foretells_the_final_order(report: Report) -> None:
    auc = report.prefix_auc
    assert auc.within_prompts
    assert auc.mean.mean > 0.65
    assert auc.positions["100%"].mean > 0.85
    assert auc.positions["10%"].mean < auc.positions["100%"].mean
    ranks = report.reciprocal_rank
    assert ranks.by_reward is not None
    assert ranks.by_reward_chance is not None
    assert ranks.by_reward.mean > ranks.by_reward_chance + 0.1
    assert report.values is not None
    assert report.values.spearman is not None
    assert report.values.spearman > 0.3
    assert not report.is_value  # preference pairs give it a scale of its own
    assert [part.fraction for part in report.inheritance] == [0.25, 0.5, 0.75]
    wins = [part.wins.mean for part in report.inheritance]
    assert wins[0] > wins[1] > wins[2] > 0


def test_it_says_how_much_is_known_beyond_the_prompt(report: Report) -> None:
    beyond = [part.beyond_prompt for part in report.known]
    values = [one.value for one in beyond if one is not None]
    assert len(values) == 5
    assert values[0] < values[2] < values[4]
    assert values[4] > 0.6
    assert warning(report) is None
    said = markdown(report)
    assert "will not steer" not in said
    assert report.credit is not None
    assert report.credit.even < report.credit.top.value < 1
    assert f"| Gini's coefficient | {report.credit.gini} |" in said
    for part in report.known:
        assert f"| {part.percent} % | {part.reward} | {part.beyond_prompt} |" in said
    assert f"| correlation with the reward at 50 %, beyond the prompt | {beyond[2]} |" in summary(
        report
    )


@pytest.mark.parametrize(
    ("low", "high", "warned"), [(-0.1, 0.2, True), (-0.3, -0.1, True), (0.01, 0.2, False)]
)
def test_a_scorer_that_knows_nothing_beyond_the_prompt_is_warned_about(
    report: Report, low: float, high: float, warned: bool
) -> None:
    parts = list(report.known)
    changed = {"value": (low + high) / 2, "low": low, "high": high}
    assert parts[2].beyond_prompt is not None
    beyond = parts[2].beyond_prompt.model_copy(update=changed)
    parts[2] = parts[2].model_copy(update={"beyond_prompt": beyond})
    judged = report.model_copy(update={"known": parts})
    sentence = warning(judged)
    assert (sentence is not None) == warned
    if sentence is not None:
        assert str(beyond) in sentence
        assert "will not steer" in sentence
        assert "more rollouts" in sentence
        assert "\n" not in sentence
        assert sentence in markdown(judged)


def test_pairs_and_rankings_are_compared_within_themselves(items: list[Rollout]) -> None:
    model, info = checkpoint.load(demo.scorers()["sentiment"])
    prompt = items[0].prompt
    best, middle, worst = (
        next(item.completion for item in items if low <= item.label <= high)
        for low, high in ((0.9, 1), (-0.1, 0.1), (-1, -0.9))
    )
    pair, ranked = Pair(prompt, best, worst), Ranked(prompt, [best, middle, worst])
    right = validate(model, info, [pair, pair], None, 0)
    assert right.prefix_auc.positions["100%"].mean == 1
    assert right.prefix_auc.mean.n == 2  # not 4, though the prompt is the same
    wrong = validate(model, info, [Pair(prompt, worst, best)], None, 0)
    assert wrong.prefix_auc.positions["100%"].mean == 0
    three = validate(model, info, [ranked], None, 0)
    assert three.prefix_auc.positions["100%"].mean == 1
    assert three.prefix_auc.mean.n == 3
    assert sorted(point.reward for point in three.points) == [0, 1, 2]


def test_an_untrained_network_is_near_chance_and_its_report_advises_against_steering(
    items: list[Rollout], tokenizer: Any
) -> None:
    means = []
    for seed in range(5):
        set_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            pad_token_id=0,
        )
        report = validate(scalar_head(config), ScorerInfo(objective="FUDGE"), items, None, 0)
        means.append(report.prefix_auc.mean.mean)
        if means[-1] < 0.6:
            assert "do not steer with it" in summary(report)
            assert "do not steer with it" in markdown(report)
    assert abs(np.mean(means) - 0.5) < 0.08
    assert "can steer" not in summary(report)


def test_which_objectives_give_values() -> None:
    values = {name for name, objective in OBJECTIVES.items() if objective().is_value}
    assert values == {
        *("td-lambda", "td-0", "cd-fudge", "rad"),
        *("distribution", "distribution-td", "q-distribution"),
        *("q-exact", "q-sampled", "dueling-q", "value-advantage", "cd-q"),
    }
    assert all(OBJECTIVES[name]().info()["is_value"] for name in values)


@pytest.mark.slow
def test_files_are_small_whole_and_none_is_stale(report: Report, tmp_path: Path) -> None:
    write(tmp_path, report)
    names = {"report.md", "report.json", *plots.PLOTS}
    assert {file.name for file in tmp_path.iterdir()} == names
    for file in tmp_path.iterdir():
        assert 500 < file.stat().st_size < 100_000, file.name
    assert Report.model_validate_json((tmp_path / "report.json").read_text()) == report
    said = (tmp_path / "report.md").read_text()
    assert all(f"({name})" in said for name in plots.PLOTS)
    assert str(report.prefix_auc.mean) in said

    write(tmp_path, report.model_copy(update={"values": None, "inheritance": []}))
    said = (tmp_path / "report.md").read_text()
    left = {file.name for file in tmp_path.glob("*.png")}
    assert left == {"report-prefix-auc.png", "report-known.png", "report-length.png"}
    assert all((f"({name})" in said) == (name in left) for name in plots.PLOTS)
    assert "--completions" in said


def test_values_are_reported_as_such(report: Report) -> None:
    assert "MSE after the best affine map" in markdown(report)
    assert "value MSE" not in summary(report)
    value = report.model_copy(update={"is_value": True})
    assert "calibration slope" in markdown(value)
    assert "value MSE" in summary(value)


@pytest.mark.slow
def test_a_checkpoint_is_updated_whole(report: Report, tmp_path: Path) -> None:
    scorer = tmp_path / "scorer"
    shutil.copytree(demo.scorers()["sentiment"], scorer)
    manifest.write_manifest(scorer)
    demo_text = card.read(scorer)[0]
    assert "preference pairs" in demo_text
    before = checkpoint.read_info(scorer)
    for _ in range(2):  # the second time replaces what the first wrote
        update(scorer, report)
        manifest.verify(scorer)
        info = checkpoint.read_info(scorer)
        assert info.prefix_auc == pytest.approx(report.prefix_auc.mean.mean, abs=1e-4)
        assert info.known_at_end == pytest.approx(report.known[-1].reward.value ** 2, abs=1e-4)
        reported = {"prefix_auc": None, "known_at_end": None}
        assert info.model_copy(update=reported) == before.model_copy(update=reported)
        readme = (scorer / "README.md").read_text()
        assert readme.count(summary(report)) == 1
        assert readme.count(demo_text) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["scorer"]
    entries = json.loads((scorer / manifest.NAME).read_text())
    assert set(plots.PLOTS) < set(entries)
    checkpoint.load(scorer)


def test_an_update_that_fails_leaves_the_checkpoint(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = tmp_path / "scorer"
    shutil.copytree(demo.scorers()["brevity"], scorer)
    before = {file.name: file.read_bytes() for file in scorer.iterdir()}

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(manifest, "write_manifest", full)
    with pytest.raises(OSError, match="No space"):
        update(scorer, report)
    assert {file.name: file.read_bytes() for file in scorer.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["scorer"]


@pytest.mark.slow
def test_what_is_not_the_checkpoints_stays(report: Report, tmp_path: Path) -> None:
    scorer = tmp_path / "scorer"
    shutil.copytree(demo.scorers()["sentiment"], scorer)
    manifest.write_manifest(scorer)
    (scorer / "notes.txt").write_text("mine")
    for _ in range(2):
        update(scorer, report)
        assert (scorer / "notes.txt").read_text() == "mine"
        assert manifest.foreign(scorer) == ["notes.txt"]
    manifest.write_manifest(scorer, ["notes.txt", "report.md"])
    before = {file.name: file.read_bytes() for file in scorer.iterdir()}
    with pytest.raises(OSError, match=r"report\.md is not of an earlier report"):
        update(scorer, report)
    with pytest.raises(SystemExit, match=r"report\.md is not of an earlier report"):
        main([str(scorer), "--rollouts", str(tmp_path / "nothing.jsonl")])
    assert {file.name: file.read_bytes() for file in scorer.iterdir()} == before


@pytest.mark.slow
def test_the_command_line(
    records: list[Record],
    half_completed: list[Record],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trimtab_models.report.__main__.warning", lambda report: "no use")
    scorer = tmp_path / "scorer"
    shutil.copytree(demo.scorers()["formality"], scorer)
    data.write(tmp_path / "rollouts.jsonl", records)
    data.write(tmp_path / "halves.jsonl", half_completed)
    arguments = [str(scorer), "--rollouts", str(tmp_path / "rollouts.jsonl")]
    main([*arguments, "--completions", str(tmp_path / "halves.jsonl")])
    printed = capsys.readouterr()
    assert printed.out.startswith("| validation | 96 ")
    assert printed.err.endswith("trimtab: no use\n")
    assert "Does a prefix inherit" in (scorer / "report.md").read_text()
    main(arguments)
    assert "Does a prefix inherit" not in (scorer / "report.md").read_text()

    with pytest.raises(SystemExit, match=r"trimtab: .*nothing"):
        main([str(scorer), "--rollouts", str(tmp_path / "nothing.jsonl")])
    with pytest.raises(SystemExit, match="trimtab: there is no directory nowhere"):
        main(["nowhere", *arguments[1:]])
    data.write(tmp_path / "halves.jsonl", [{"prefix_token_ids": [1], "fraction": 0.5}])
    with pytest.raises(SystemExit, match=r"trimtab: half-completed answer 1 lacks \['prompt_tok"):
        main([*arguments, "--completions", str(tmp_path / "halves.jsonl")])
