"""The files of deploy/ name settings, ports, paths and metrics that exist."""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

from trimtab_server import metrics, scorer_metrics, settings, upstream
from trimtab_server.settings import Settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "trimtab"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/trimtab.json").read_text())
RULES = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())["groups"][0]["rules"]
VARIABLES = {f"TRIMTAB_{name.upper()}" for name in Settings.model_fields}
OTHERS = {settings.CONFIG_VARIABLE, "TRIMTAB_CACHE"}
BY_CHART = {
    *("model", "scorer", "host", "port", "vllm", "drain_timeout"),
    *("api_key", "admin_key", "upstream_key"),
}
"""Settings that values of the chart set under other names."""
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def load(path):
    return yaml.safe_load((DEPLOY / path).read_text())


def program(name):
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")


def run(*command):
    return subprocess.run(command, cwd=DEPLOY, capture_output=True, text=True, check=False)


# --- metrics -------------------------------------------------------------------------------------

SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}


def exported():
    """The names of our own samples, and of vLLM's as its source has them."""
    assert {metrics, scorer_metrics, upstream}  # whose import registers them
    own = {
        family.name + suffix
        for family in REGISTRY.collect()
        if family.name.startswith("trimtab_")
        for suffix in SUFFIXES[family.type]
    }
    source = _vllm("v1/metrics/loggers.py")
    suffixes = ("", "_total", "_bucket", "_sum", "_count")
    theirs = {name + end for name in re.findall(r'"(vllm:\w+)"', source) for end in suffixes}
    return own | theirs | {"up"}


def _vllm(path):
    from importlib.util import find_spec

    spec = find_spec("vllm")  # without importing it, which takes seconds
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    return (Path(spec.origin).parent / path).read_text()


def named(expression):
    """The metrics that a PromQL expression names."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\b(by|on|without|group_left|ignoring)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\{[^}]*\}", "", bare)
    return set(re.findall(r"(?<![\w$:])(?:trimtab_\w+|vllm:\w+|up)\b(?!\s*\()", bare))


def expressions():
    """Every expression of the rules and of the dashboard, by where it stands."""
    by_place = {rule["alert"]: rule["expr"] for rule in RULES}
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            by_place[f"{panel['title']} {target['refId']}"] = target["expr"]
    for variable in DASHBOARD["templating"]["list"][1:]:
        by_place[variable["name"]] = variable["query"]["query"]
    for note in DASHBOARD["annotations"]["list"]:
        by_place[note["name"]] = note["expr"]
    return by_place


def test_every_metric_that_is_watched_is_exported():
    known = exported()
    for place, expression in expressions().items():
        names = named(expression)
        assert names, place
        assert names <= known, f"{place}: {names - known}"


def test_a_misspelt_metric_is_noticed():
    """The control, for each kind of sample."""
    known = exported()
    for wrong in (
        "trimtab_reedy == 0",
        "rate(trimtab_steps[5m])",
        "sum by (le) (rate(trimtab_scoring_seconds{a='b'}[5m]))",
        "trimtab_ready_total / vllm:num_requests_runing",
    ):
        assert named(wrong) - known, wrong
    assert named('sum by (up) (rate(trimtab_steps_total{up="up"}[5m]))') == {"trimtab_steps_total"}


def test_every_metric_of_ours_is_documented():
    page = (ROOT / "docs" / "operations.md").read_text()
    families = {f.name + ("_total" if f.type == "counter" else "") for f in REGISTRY.collect()}
    ours = {name for name in families if name.startswith("trimtab_")}
    assert len(ours) > 20
    assert {name for name in ours if f"`{name}`" not in page} == set()
    assert set(re.findall(r"`(trimtab_\w+)`", page)) <= ours


def test_every_alert_is_tested_and_documented():
    alerts = {rule["alert"] for rule in RULES}
    [fires, _] = load("prometheus/alerts_test.yaml")["tests"]
    assert {c["alertname"] for c in fires["alert_rule_test"] if c.get("exp_alerts")} == alerts
    page = (ROOT / "docs" / "operations.md").read_text()
    assert set(re.findall(r"`(Trimtab\w+)`", page)) == alerts


def test_the_dashboard_is_laid_out():
    """Panels have titles, do not overlap, and take the data source that is chosen."""
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert panel["title"]
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


@program("promtool")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "prometheus/alerts.yaml"),
        ("test", "rules", "prometheus/alerts_test.yaml"),
        ("check", "config", "--syntax-only", "prometheus/prometheus.yaml"),
    ],
    ids=" ".join,
)
def test_promtool_is_content(arguments):
    done = run("promtool", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


@program("promtool")
@pytest.mark.parametrize("change", [("> 0.01", "> 0.9"), ("== 0", "== 7"), ("> 0.2", "> 0.31")])
def test_promtool_notices_a_changed_threshold(change, tmp_path):
    """The control of the rules' tests."""
    text = (DEPLOY / "prometheus/alerts.yaml").read_text()
    (tmp_path / "alerts.yaml").write_text(text.replace(*change))
    assert change[0] in text
    shutil.copy(DEPLOY / "prometheus/alerts_test.yaml", tmp_path)
    assert run("promtool", "test", "rules", str(tmp_path / "alerts_test.yaml")).returncode != 0


# --- compose -------------------------------------------------------------------------------------


def test_compose_passes_every_setting():
    service = load("compose.yaml")["services"]["trimtab"]
    own = {"TRIMTAB_MODEL", "TRIMTAB_PORT"}  # an argument; and the port is published
    assert set(service["environment"]) == (VARIABLES | OTHERS) - own
    fixed = {name for name, value in service["environment"].items() if value is not None}
    assert fixed == {"TRIMTAB_API_KEY", "TRIMTAB_HOST"}
    assert "${TRIMTAB_MODEL-demo}" in service["command"]


def test_compose_names_what_exists():
    services = load("compose.yaml")["services"]
    server = services["trimtab"]
    folder = DEPLOY / server["build"]["context"]
    assert (folder / server["build"]["dockerfile"]).is_file()
    assert int(server["stop_grace_period"].rstrip("s")) > Settings(model="m").drain_timeout + 2
    for service in ("prometheus", "grafana"):
        for volume in services[service]["volumes"]:
            assert (DEPLOY / volume.split(":")[0]).exists(), volume
    [scrape] = load("prometheus/prometheus.yaml")["scrape_configs"]
    port = Settings(model="m").port
    assert server["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert scrape["static_configs"][0]["targets"] == [f"trimtab:{port}"]
    assert scrape["authorization"]["credentials_file"] == "/run/secrets/trimtab_api_key"
    assert load("prometheus/prometheus.yaml")["rule_files"] == ["alerts.yaml"]
    [provider] = load("grafana/provisioning/dashboards/trimtab.yaml")["providers"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*")), ids=lambda path: path.name)
def test_every_variable_exists(path):
    if path.is_file():
        variables = set(re.findall(r"\bTRIMTAB_[A-Z][A-Z_]*[A-Z]\b", path.read_text()))
        assert variables <= VARIABLES | OTHERS


# --- Kubernetes ----------------------------------------------------------------------------------


def test_the_chart_has_the_projects_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == VERSION
    [container] = load("kserve/runtime.yaml")["spec"]["containers"]
    assert container["image"] == f"trimtab:{VERSION}"


def test_the_charts_schema_knows_every_setting():
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    assert set(schema["settings"]["properties"]) == set(Settings.model_fields) - BY_CHART
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(values) == set(schema) - {"global"}
    for name, value in values.items():
        if isinstance(value, dict) and "properties" in schema[name] and name != "settings":
            assert set(value) == set(schema[name]["properties"]), name
    assert values["drainSeconds"] == Settings(model="m").drain_timeout


def test_kserve_waits_for_the_drain():
    [container] = load("kserve/runtime.yaml")["spec"]["containers"]
    predictor = load("kserve/inference-service.yaml")["spec"]["predictor"]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = predictor["terminationGracePeriodSeconds"]
    assert grace > pause + int(env["TRIMTAB_DRAIN_TIMEOUT"]) + 2
    assert predictor["model"]["runtime"] == load("kserve/runtime.yaml")["metadata"]["name"]


def rendered(*options):
    done = run("helm", "template", "steered", str(CHART), *options)
    assert done.returncode == 0, done.stderr
    return {one["kind"]: one for one in yaml.safe_load_all(done.stdout) if one}


FULL = ("-f", str(CHART / "ci" / "full-values.yaml"))


@program("helm")
@pytest.mark.parametrize("options", [(), FULL], ids=["default", "full"])
def test_helm_is_content(options):
    done = run("helm", "lint", "--strict", str(CHART), *options)
    assert done.returncode == 0, done.stdout + done.stderr


@program("helm")
def test_a_pod_of_the_chart():
    objects = rendered(*FULL)
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    env = {entry["name"]: entry for entry in container["env"]}
    drain = int(env["TRIMTAB_DRAIN_TIMEOUT"]["value"])
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause + drain + 2
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    probed = {
        probe: container[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert set(probed.values()) == {"/health", "/ready"}
    [metric] = objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in exported()
    keys = set(objects["Secret"]["stringData"])
    needed = {
        source["key"]
        for entry in env.values()
        if (source := entry.get("valueFrom", {}).get("secretKeyRef", {})).get("name")
        == objects["Secret"]["metadata"]["name"]
        and not source.get("optional")
    }
    assert needed <= keys
    [endpoint] = objects["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"]["key"] in keys


@program("helm")
def test_a_pods_environment_is_what_the_server_reads(monkeypatch):
    objects = rendered(*FULL)
    [container] = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    secret = objects["Secret"]["stringData"]
    for name in VARIABLES | OTHERS:
        monkeypatch.delenv(name, raising=False)
    for entry in container["env"]:
        source = entry.get("valueFrom", {}).get("secretKeyRef", {})
        value = entry.get("value", secret.get(source.get("key")))
        if entry["name"].startswith("TRIMTAB_") and value is not None:
            monkeypatch.setenv(entry["name"], value)
    loaded = settings.load({"model": container["args"][1]})
    assert [key.get_secret_value() for key in loaded.api_key] == ["first-key", "second-key"]
    assert {name: spec.alpha for name, spec in loaded.scorer.items()} == {
        "kindness": None,
        "brevity": 2.0,
    }
    assert loaded.default_scorer == {"kindness": 1.0, "brevity": -0.5}
    assert loaded.vllm == {"max-model-len": 4096, "enable-prefix-caching": False}
    assert loaded.allowed_origins == ["https://a.example", "https://b.example"]
    assert (loaded.cache_bytes, loaded.scorer_timeout) == (8 * 2**30, 2.5)
    assert (loaded.log_format, loaded.access_log, loaded.drain_timeout) == ("json", False, 120)
    assert (loaded.host, loaded.port) == ("0.0.0.0", 8000)


@program("helm")
@pytest.mark.parametrize(
    "values",
    [
        "replicas: 2",
        "settings: {log_fromat: json}",
        "settings: {drain_timeout: 3}",
        "keys: {adminKey: alone}",
        "scorers: [nameless]",
    ],
)
def test_the_chart_refuses_what_cannot_work(values, tmp_path):
    file = tmp_path / "values.yaml"
    file.write_text(values)
    assert run("helm", "template", "steered", str(CHART), "-f", str(file)).returncode != 0
