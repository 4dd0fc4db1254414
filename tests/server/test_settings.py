"""Settings: where they come from, and that all of them are documented."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from trimtab.config import ScorerSpec
from trimtab.errors import StartError, TrimtabError
from trimtab_models import smollm2
from trimtab_server import bases, cli, launcher, settings

pytestmark = pytest.mark.scorecard(letter="S")

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in settings.Settings.model_fields:
        monkeypatch.delenv(f"TRIMTAB_{name.upper()}", raising=False)
    monkeypatch.delenv(settings.CONFIG_VARIABLE, raising=False)


def test_precedence(monkeypatch, tmp_path):
    config = tmp_path / "trimtab.yaml"
    config.write_text("model: by-yaml\nport: 1\nhost: 0.0.0.0\n")
    assert settings.load({"model": "m"}).port == 8000
    assert settings.load({}, config).port == 1
    monkeypatch.setenv("TRIMTAB_PORT", "2")
    assert settings.load({}, config).port == 2
    assert settings.load({"port": 3, "model": None}, config).port == 3
    loaded = settings.load({}, config)
    assert (loaded.model, loaded.host) == ("by-yaml", "0.0.0.0")
    monkeypatch.setenv(settings.CONFIG_VARIABLE, str(config))
    assert settings.load({}).model == "by-yaml"


def test_scorers_by_command_line_environment_and_yaml(monkeypatch, tmp_path):
    expected = {
        "kind": ScorerSpec(path="./k"),
        "gen": ScorerSpec(path="g", family="log_ratio", alpha=2.0),
    }
    options = ["kind=./k", "gen=g,family=log_ratio,alpha=2.0"]
    by_line = settings.load(
        {"model": "m", "scorer": options, "default_scorer": ["kind=-0.5", "gen"]}
    )
    assert by_line.scorer == expected
    assert by_line.default_scorer == {"kind": -0.5, "gen": 1.0}
    config = tmp_path / "trimtab.yaml"
    config.write_text(
        "model: m\nscorer:\n  kind: ./k\n  gen: {path: g, family: log_ratio, alpha: 2.0}\n"
        "default_scorer: {kind: -0.5}\nvllm: {max-model-len: 512}\n"
    )
    by_yaml = settings.load({}, config)
    assert by_yaml.scorer == expected
    assert by_yaml.vllm == {"max-model-len": 512}
    monkeypatch.setenv("TRIMTAB_SCORER", " ".join(options))
    assert settings.load({"model": "m"}).scorer == expected


def test_trained_scorers_of_smollm2_are_served_but_not_asked_for_by_default(monkeypatch, capsys):
    monkeypatch.setattr(bases, "locate", lambda name, flags: ("directory", ["--flag"]))
    monkeypatch.setattr(smollm2, "probes", lambda: {"kindness-probe": {"path": "there"}})
    own = settings.Settings(model="smollm2", scorer={"mine": ScorerSpec(path="m")})
    filled, _ = bases.fill(own)
    assert filled.scorer["kindness-probe"].path == "there"
    assert set(filled.default_scorer) == set(filled.scorer) - {"kindness-probe"}
    assert "mine" in filled.default_scorer
    assert not capsys.readouterr().err
    chosen = settings.Settings(model="smollm2", default_scorer={"kindness-probe": 2.0})
    assert bases.fill(chosen)[0].default_scorer == {"kindness-probe": 2.0}
    monkeypatch.setattr(smollm2, "probes", dict)
    assert set(bases.fill(own)[0].scorer) == set(filled.default_scorer)
    assert bases.UNTRAINED in capsys.readouterr().err


def test_keys_are_secret_and_may_be_several(monkeypatch):
    monkeypatch.setenv("TRIMTAB_API_KEY", "key-1,key-2")
    monkeypatch.setenv("TRIMTAB_ADMIN_KEY", "key-3")
    monkeypatch.setenv("TRIMTAB_UPSTREAM_KEY", "key-4")
    loaded = settings.load({"model": "m"})
    assert [key.get_secret_value() for key in loaded.api_key] == ["key-1", "key-2"]
    assert loaded.admin_key.get_secret_value() == "key-3"
    assert loaded.upstream_key.get_secret_value() == "key-4"
    assert "key-" not in repr(loaded)


NO_KEYS = ["", ",", " ", "a,", ",a", "a b", " a", "a,\tb", "caf\u00e9", "a\x00", "a\x7f", "a\n"]


@pytest.mark.parametrize("name", ["api_key", "admin_key", "upstream_key"])
@pytest.mark.parametrize("key", NO_KEYS)
def test_a_key_that_is_none_is_refused(monkeypatch, tmp_path, name, key):
    """By each way it may come; such a key would open the server, or never open it."""
    if name != "api_key" and "," in key and key != "a,\tb":
        return  # several keys are for users alone; to others a comma is a character
    config = tmp_path / "trimtab.yaml"
    options = key.split(",") if name == "api_key" else key
    with pytest.raises(StartError, match=name) as refused:
        settings.load({"model": "m", name: options})
    assert "\n" not in refused.value.message
    config.write_text(yaml.safe_dump({"model": "m", name: options}))
    with pytest.raises(StartError, match=name):
        settings.load({}, config)
    if "\0" not in key:
        monkeypatch.setenv(f"TRIMTAB_{name.upper()}", key)
        with pytest.raises(StartError, match=name):
            settings.load({"model": "m"})


@pytest.mark.parametrize("name", ["api_key", "admin_key", "upstream_key"])
@pytest.mark.parametrize("value", ["", "[]", "null", "''", "['']", "[null]"])
def test_a_key_without_a_value_in_yaml_is_refused(tmp_path, name, value):
    config = tmp_path / "trimtab.yaml"
    config.write_text(f"model: m\n{name}: {value}\n")
    with pytest.raises(StartError, match=name):
        settings.load({}, config)


def test_no_refusal_holds_a_key(tmp_path):
    config = tmp_path / "trimtab.yaml"
    for text in ("[secret-1, secret 2]", "{secret-1: secret-2}", "secret 1", "'secret-\u00e9'"):
        config.write_text(f"model: m\napi_key: {text}\n")
        with pytest.raises(StartError) as refused:
            settings.load({}, config)
        assert "secret" not in refused.value.message


def test_an_admin_key_is_no_users(tmp_path):
    with pytest.raises(StartError, match="choose another"):
        settings.load({"model": "m", "api_key": ["a", "b"], "admin_key": "b"})


def test_origins(monkeypatch, tmp_path):
    both = ["https://a", "https://b"]
    for options in (both, [json.dumps(both)]):
        assert settings.load({"model": "m", "allowed_origins": options}).allowed_origins == both
    for text in ("https://a https://b", json.dumps(both)):
        monkeypatch.setenv("TRIMTAB_ALLOWED_ORIGINS", text)
        assert settings.load({"model": "m"}).allowed_origins == both
    monkeypatch.delenv("TRIMTAB_ALLOWED_ORIGINS")
    assert settings.load({"model": "m"}).allowed_origins == []
    assert settings.load({"model": "m", "allowed_origins": ["*"]}).allowed_origins == ["*"]
    for wrong in (["[1"], ["[1]"]):
        with pytest.raises(StartError, match="allowed_origins"):
            settings.load({"model": "m", "allowed_origins": wrong})


def test_loading_is_refused_at_start_where_it_cannot_be_safe(tmp_path):
    options = {"model": "m", "scorer": ["a=x"], "api_key": ["k"], "admin_key": "adm"}
    ready = settings.load({**options, "scorer_dir": tmp_path}).ready_to_load()
    assert ready.default_scorer == {"a": 1.0}
    assert settings.load(options).ready_to_load().default_scorer == {}
    for wrong in ({"scorer_dir": tmp_path / "absent"}, {"scorer_dir": tmp_path, "admin_key": "k"}):
        with pytest.raises(StartError):
            settings.load({**options, **wrong}).ready_to_load()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model": "m", "port": 70000},
        {"model": "m", "scorer": ["no-path"]},
        {"model": "m", "scorer": ["a=x", "a=y"]},
        {"model": "m", "scorer": ["Bad Name=x"]},
        {"model": "m", "scorer": ["a=x,family=unheard-of"]},
        {"model": "m", "default_scorer": ["a=much"]},
    ],
)
def test_what_does_not_fit_is_refused(options):
    with pytest.raises(TrimtabError):
        settings.load(options)


def test_a_default_scorer_must_be_served():
    loaded = settings.load({"model": "m", "scorer": ["a=x"], "default_scorer": ["b=1"]})
    with pytest.raises(TrimtabError, match="default scorers"):
        loaded.guidance()


def test_unknown_yaml_and_missing_file_are_refused(tmp_path):
    config = tmp_path / "trimtab.yaml"
    config.write_text("model: m\nprot: 1\n")
    with pytest.raises(StartError, match="prot"):
        settings.load({}, config)
    config.write_text("model: [")
    with pytest.raises(StartError, match="YAML"):
        settings.load({}, config)
    with pytest.raises(StartError, match="no configuration file"):
        settings.load({}, tmp_path / "absent.yaml")


def test_the_command_line_takes_every_setting_and_passes_other_flags_on(monkeypatch):
    served = []
    monkeypatch.setattr(launcher, "serve", lambda *options: served.append(options))
    flags = [
        "serve",
        "m",
        "--scorer",
        "a=x,family=log_ratio,alpha=2",
        "--scorer",
        "b=y",
        "--default-scorer",
        "b",
    ]
    flags += [
        "--port",
        "3",
        "--log-level",
        "debug",
        "--api-key",
        "k",
        "--allowed-origins",
        "https://a",
    ]
    flags += ["--upstream-end", "two words", "--max-num-seqs", "8", "--admin-key", "adm"]
    assert CliRunner().invoke(cli.app, flags).exit_code == 0
    ((loaded, flags),) = served
    assert (loaded.model, loaded.port, loaded.log_level) == ("m", 3, "debug")
    assert loaded.scorer == {
        "a": ScorerSpec(path="x", family="log_ratio", alpha=2),
        "b": ScorerSpec(path="y"),
    }
    assert loaded.default_scorer == {"b": 1.0}
    assert (loaded.allowed_origins, loaded.upstream_end) == (["https://a"], ["two words"])
    assert loaded.keys() == {"keys": ["k"], "admin_key": "adm"}
    assert flags == ["--max-num-seqs", "8"]
    shown = CliRunner().invoke(cli.app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    for name in settings.Settings.model_fields.keys() - {"model", "vllm"}:
        assert f" --{name.replace('_', '-')} " in shown


def test_every_setting_is_described_and_documented():
    for name, field in settings.Settings.model_fields.items():
        assert field.description, name
    assert settings.table() in DOCS.read_text()


def test_the_scorers_budget_reaches_the_worker():
    options = {"model": "m", "scorer": ["kind=./k"]}
    assert settings.load(options).guidance()["scorer_timeout"] == 10
    assert settings.load({**options, "scorer_timeout": 2.5}).guidance()["scorer_timeout"] == 2.5
    for bad in (0, -1, "nan", "inf", "soon"):
        with pytest.raises(StartError, match="scorer_timeout"):
            settings.load({**options, "scorer_timeout": bad})
