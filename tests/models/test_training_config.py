"""Settings of a run: the YAML file, overrides, and the configuration files of the project."""

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from trimtab_models.objectives.plackett_luce import PlackettLuce
from trimtab_models.training import config, initial
from trimtab_models.training.grounded.settings import GroundedConfig

CONFIGS = Path(__file__).parents[2] / "configs"
NEEDED = ["base=demo", "data=d.jsonl", "out=o"]


def test_values_from_the_command_line_are_put_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "objective: td-lambda\nbase: demo\ndata: d.jsonl\nout: o\nepochs: 3\n"
        "learning_rate: 5e-6\nlora: {r: 4, alpha: 8}\noptions: {decay: 0.9}\n"
    )
    sets = ["epochs=2.5", "lora.r=2", "trainer.max_grad_norm=1e-1", "validation=0.1"]
    loaded = config.load(file, sets, "cd-fudge")
    assert loaded.objective == "cd-fudge"
    assert (loaded.epochs, loaded.learning_rate, loaded.validation) == (2.5, 5e-6, 0.1)
    assert loaded.lora == config.Lora(r=2, alpha=8)
    assert loaded.options == {"decay": 0.9}
    assert loaded.trainer == {"max_grad_norm": 0.1}
    assert config.load(None, [*NEEDED, "learning_rate=[1e-4, 3e-4]"], "rad").learning_rate == [
        1e-4,
        3e-4,
    ]


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["epoch=2"], r"epoch: no such setting; did you mean 'epochs'\?"),
        (["lora.rank=2"], r"lora\.rank: no such setting; expected one of r, alpha"),
        (["epochs=0"], r"epochs: input should be greater than 0"),
        (["epochs=many"], r"epochs: .*number"),
        (["validation=1.5"], r"validation.*between 0 and 1, not 1\.5"),
        (["learning_rate=[]"], r"learning_rate: expected a positive number"),
        (["objective=dpo", "layers=2"], r"layers: dpo needs the whole initial network"),
        (["completions=halves.jsonl"], r"completions: is read with `validation` only"),
        (["eval_steps=5"], r"eval_steps: is read with `validation` only"),
        (["objective=td-lamda"], r"no objective 'td-lamda'; did you mean 'td-lambda'\?"),
        (["epochs"], r"--set expects key=value.*not 'epochs'"),
        (["options={"], r"--set options: not YAML"),
    ],
)
def test_an_error_names_the_setting(sets: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        config.load(None, ["objective=td-lambda", *NEEDED, *sets])


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"base: is needed.*; data: is needed.*; out: is needed"):
        config.load(None, [], "td-lambda")


@pytest.mark.parametrize(
    ("record", "sets", "objective", "probed"),
    [
        ({"prefix_rewards": [0.5]}, [], "gains", True),
        ({"prefix_rewards": [0.5]}, ["probe.rank=4"], "gains", True),
        ({"prefix_rewards": [0.5]}, ["layers=2"], "gains", False),
        ({"prefix_rewards": [0.5]}, ["objective=td-lambda"], "td-lambda", False),
        ({"prefix_rewards": None}, [], "distribution", False),
        ({}, [], "distribution", False),
    ],
)
def test_the_data_chooses_an_objective_that_nobody_named(
    tmp_path: Path, record: dict[str, object], sets: list[str], objective: str, probed: bool
) -> None:
    data = tmp_path / "rollouts.jsonl"
    data.write_text(json.dumps({"prompt": "a", "completion": "b", "reward": 1, **record}) + "\n")
    made = config.load(None, ["base=demo", f"data={data}", f"out={tmp_path / 'out'}", *sets])
    assert isinstance(made, config.TrainConfig)
    assert (made.objective, made.probe is not None) == (objective, probed)
    if made.probe is not None:
        assert made.epochs == 8
        assert made.probe.rank == (4 if sets else 16)
    named = config.load(None, ["base=demo", "data=owner/name", "out=o"])
    assert isinstance(named, config.TrainConfig)
    assert named.objective == "distribution"


def test_options_that_an_objective_does_not_take() -> None:
    with pytest.raises(ValueError, match=r"options of td-lambda: .*'lamda'"):
        initial.objective(config.load(None, [*NEEDED, "options.lamda=0.9"], "td-lambda"))


def test_training_the_language_model_itself_has_settings_of_its_own() -> None:
    sets = [*NEEDED, "reward=taste:kind", "steps=20"]
    loaded = config.load(None, sets, "grounded-mle")
    assert isinstance(loaded, GroundedConfig)
    assert (loaded.objective, loaded.steps) == ("grounded-mle", 20)
    with pytest.raises(ValueError, match=r"alpha: is of grounded-reinforce"):
        config.load(None, [*sets, "alpha=0.1"], "grounded-mle")
    with pytest.raises(ValueError, match=r"reward: is needed.*; epochs: no such setting"):
        config.load(None, [*NEEDED, "epochs=2"], "grounded-reinforce")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_configurations_that_come_along(file: Path) -> None:
    named = "objective:" in file.read_text()
    loaded = config.load(file, objective=None if named else "td-lambda")
    if isinstance(loaded, GroundedConfig):
        PlackettLuce(**loaded.options)
    elif loaded.objective != config.DPO:
        initial.objective(loaded)
    header = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert any("paper" in line.lower() for line in header) or loaded.base == "demo"


@pytest.mark.parametrize("name", ["fsdp", "deepspeed", "multi-node"])
def test_accelerate_reads_its_configurations(name: str) -> None:
    loaded: Any = load_config_from_file(str(CONFIGS / "accelerate" / f"{name}.yaml"))
    kinds = {"fsdp": "FSDP", "deepspeed": "DEEPSPEED", "multi-node": "MULTI_GPU"}
    assert loaded.distributed_type.value == kinds[name]
    assert loaded.num_processes > 1
