"""`trimtab train` as a command: what it passes on, and one line for what is wrong."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from trimtab_models.training import __main__ as training
from trimtab_server.commands.train import train

app = typer.Typer()
app.command()(train)


def test_the_command_passes_its_arguments_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configs = []
    monkeypatch.setattr(training, "run", configs.append)
    file = tmp_path / "run.yaml"
    file.write_text("base: demo\ndata: d.jsonl\nout: o\n")
    arguments = ["rad", "--config", str(file), "--set", "epochs=3", "--set", "lora.r=4"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert (configs[0].objective, configs[0].epochs, configs[0].lora.r) == ("rad", 3, 4)


def test_what_is_wrong_is_one_line() -> None:
    result = CliRunner().invoke(app, ["td-lamda", "--set", "base=demo"])
    assert result.exit_code == 1
    assert result.stderr.startswith("trimtab: objective: there is no objective 'td-lamda'")
    assert result.stderr.count("\n") == 1


def test_a_missing_file_is_one_line() -> None:
    result = CliRunner().invoke(app, ["rad", "--config", "nowhere.yaml"])
    assert result.exit_code == 1
    assert "nowhere.yaml" in result.stderr
    assert result.stderr.count("\n") == 1
