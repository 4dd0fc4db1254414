"""POST /v1/presets/{name}/fit and `trimtab fit-taste`: presets from comparisons; no engine."""

import json

import pytest
import yaml
from typer.testing import CliRunner
from upstream_fake import Fake

from live import made as over_memory
from test_presets import OTHER, USER, Admin, bearer, here
from test_upstream import Here
from trimtab.engine import GenerationRequest
from trimtab.errors import InvalidRequest
from trimtab.params import GuidanceParams
from trimtab_models import demo
from trimtab_server import cli

pytestmark = pytest.mark.scorecard(letter="B")

ROWS = [
    {"prompt": "Say it:", "chosen": "It is good, so good.", "rejected": "It is bad 🙂."},
    {"prompt": "And?", "answers": ["Fine 🙂 🙂.", "Fine, good."], "choice": 1},
    {"prompt": "And?", "answers": ["Fine.", "So so."], "choice": "tie"},
]
FIT = {"comparisons": ROWS, "scorers": ["good", "emoji"], "beta": 1}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "presets.yaml"


async def test_a_preset_is_fitted_and_served(file):
    made = here(presets=file)
    admin = Admin(made)
    answer = await admin("POST", "mine/fit", **FIT)
    assert answer.status_code == 200, answer.text
    fitted = answer.json()
    weights = fitted["weights"]
    assert weights.keys() == {"good", "emoji"}
    assert weights["good"]["mean"] > 0 > weights["emoji"]["mean"]
    for one in weights.values():
        low, high = one["interval"]
        assert low < one["mean"] < high
        assert 0 < one["positive"] < 1
    assert (fitted["comparisons"], fitted["ties"], fitted["level"]) == (3, 1, 0.9)
    assert fitted["effective_draws"] > 1000
    assert {frozenset(one["answers"]) for one in fitted["ask"]} <= {
        frozenset((a, b))
        for a in ("Fine 🙂 🙂.", "Fine, good.", "Fine.", "So so.")
        for b in ("Fine 🙂 🙂.", "Fine, good.", "Fine.", "So so.")
    }
    assert len(fitted["ask"]) == 4
    assert fitted["preset"] == (await admin("GET", "mine")).json()
    assert fitted["preset"]["guidance"] == fitted["guidance"]
    assert yaml.safe_load(file.read_text())["mine"]["guidance"] == fitted["guidance"]
    steered = await made.post(prompt="Say it:", max_tokens=8, temperature=0, model="m@mine")
    assert steered.json()["choices"][0]["guidance"]["kl"] > 0
    again = (await admin("POST", "other/fit", **FIT)).json()
    assert again["weights"] == weights  # seeded


async def test_nothing_is_overwritten_unless_asked(file):
    admin = Admin(here(presets=file, preset=["warm=good:1"]))
    assert (await admin("POST", "mine/fit", **FIT)).status_code == 200
    before = file.read_bytes()
    assert (await admin("POST", "mine/fit", **FIT)).status_code == 409
    assert (await admin("POST", "warm/fit", **FIT, replace=True)).status_code == 409
    only = await admin("POST", "mine/fit", **{**FIT, "beta": 3}, save=False)
    assert only.json()["preset"] is None
    assert only.json()["guidance"]["beta"] == 3
    assert file.read_bytes() == before
    changed = {"kl_budget": 2, "bounds": {"kl_budget": [0, 4]}, "key": USER, "scorers": ["good"]}
    rest = {"comparisons": ROWS, "replace": True}
    shown = (await admin("POST", "mine/fit", **rest, **changed)).json()["preset"]
    assert shown["guidance"]["kl_budget"] == 2
    assert shown["guidance"]["scorers"].keys() == {"good"}
    assert (shown["bounds"], shown["has_key"]) == ({"kl_budget": [0, 4]}, True)


@pytest.mark.parametrize(
    ("status", "change"),
    [
        (400, {"comparisons": []}),
        (400, {"comparisons": None}),
        (400, {"comparisons": "secret"}),
        (400, {"comparisons": [{"prompt": "secret"}]}),
        (400, {"comparisons": ROWS * 200}),
        (400, {"comparisons": [{**ROWS[0], "secret": 1}]}),
        (400, {"comparisons": [{**ROWS[1], "choice": True}]}),
        (400, {"comparisons": [{**ROWS[2], "answers": ["x", "y"]}]}),  # no scorer tells
        (400, {"candidates": [{"prompt": "x", "answers": ["secret"]}]}),
        (400, {"candidates": [{"prompt": "x", "answers": list("abcdefghi")}]}),
        (400, {"beta": None}),
        (400, {"beta": 1, "kl_budget": 1}),
        (400, {"beta": 0}),
        (400, {"beta": -1}),
        (400, {"beta": 1000}),
        (400, {"beta": True}),
        (400, {"beta": "secret"}),
        (400, {"beta": None, "kl_budget": -1}),
        (400, {"scorers": []}),
        (400, {"scorers": ["secret"]}),
        (400, {"scorers": ["Not A Name"]}),
        (400, {"scorers": ["good", "good"]}),
        (400, {"scorers": {"good": 1}}),
        (400, {"level": 1}),
        (400, {"level": 0.4}),
        (400, {"bounds": {"secret": [0, 1]}}),
        (400, {"key": "secret"}),
        (400, {"save": 1}),
        (400, {"secret": 1}),
        (400, {"comparisons": [{"messages": [{"role": "user", "content": "x"}], **ROWS[1]}]}),
    ],
)
async def test_a_bad_body_is_refused(file, status, change):
    made = here(presets=file)
    fields = {name: value for name, value in {**FIT, **change}.items() if value is not None}
    answer = await Admin(made)("POST", "mine/fit", **fields)
    assert answer.status_code == status, answer.text
    assert "secret" not in answer.text
    assert not file.exists()


async def test_names_and_keys(file):
    made = here(presets=file)
    admin = Admin(made)
    assert (await admin("POST", "base/fit", **FIT)).status_code == 400
    assert (await admin("POST", "Bad!/fit", **FIT)).status_code == 400
    for key, status in ((USER, 403), (OTHER, 403), ("wrong", 401)):
        answer = await made.http.post("/v1/presets/mine/fit", headers=bearer(key), json=FIT)
        assert answer.status_code == status
    without = Admin(here())
    assert (await without("POST", "mine/fit", **FIT)).status_code == 403
    assert (await without("POST", "mine/fit", **FIT, save=False)).status_code == 200


async def test_a_scorer_that_fails_makes_no_preset(file):
    answer = await Admin(here(presets=file))("POST", "mine/fit", **{**FIT, "scorers": ["late"]})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "scorer_failed"
    assert "secret" not in answer.text
    assert not file.exists()


async def test_engines_score_what_the_scorers_see():
    """Over an upstream and in memory, a text is scored like the scorer's own function."""
    engine = Here(Fake()).app.state.trimtab.engine
    params = GuidanceParams(scorers={"good": 1.0, "emoji": 1.0}, beta=0.0)
    request = GenerationRequest(text="Say", guidance=params)
    scores = await engine.score(request, [" good good 🙂", " bad"])
    assert scores == [{"good": 2.0, "emoji": 1.0}, {"good": 0.0, "emoji": 0.0}]
    await engine.thread.run(int)  # what was to be done before is done
    assert engine.naming.pieces.prompts == {}
    memory = over_memory().state.trimtab.engine
    params = GuidanceParams(scorers={"sentiment": 1.0}, beta=0.0)
    scored = await memory.score(GenerationRequest(text="the", guidance=params), ["abc", "e"])
    assert scored == [{"sentiment": 0.0}] * 2  # the last token is that of the end
    with pytest.raises(InvalidRequest, match="more than 512"):
        await memory.score(GenerationRequest(text="the", guidance=params), ["a" * 600])


LINES = [
    {"prompt": "Review of the cafe:", "chosen": " It was lovely.", "rejected": " It was awful."},
    {
        "messages": [{"role": "user", "content": "How was the hotel?"}],
        "answers": ["The bed was rather pleasant.", "Gotta say, the bed felt dirty to me."],
        "choice": 0,
        "source": "a field of the file",
    },
]


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch):
    file, presets = tmp_path / "c.jsonl", tmp_path / "presets.yaml"
    file.write_text("\n".join(map(json.dumps, LINES)), encoding="utf-8")
    shared = ["fit-taste", "--base", "demo", "--comparisons", str(file)]

    def run(*more):
        return CliRunner().invoke(cli.app, [*shared, *more])

    done = run("--kl-budget", "2", "--presets", str(presets), "--preset", "mine")
    assert done.exit_code == 0, done.output + done.stderr
    assert {*demo.scorers()} <= {*done.output.split()}
    saved = yaml.safe_load(presets.read_text())["mine"]["guidance"]
    assert saved["kl_budget"] == 2
    assert saved["scorers"]["sentiment"] > 0
    again = run("--kl-budget", "2", "--presets", str(presets), "--preset", "mine")
    assert again.exit_code == 1
    assert "add --replace" in again.stderr
    only = ("--scorer", f"warm={demo.scorers()['sentiment']}", "--beta", "3", "--json")
    fields = json.loads(run(*only).output)
    assert fields["guidance"].items() >= {"beta": 3.0, "normalize": True}.items()
    assert fields["weights"].keys() == {"warm"}
    assert fields["ask"] == []
    for wrong in ((), ("--beta", "1", "--kl-budget", "1"), ("--beta", "1", "--preset", "base")):
        refused = run(*wrong)
        assert refused.exit_code == 1
        assert len(refused.stderr.strip().splitlines()) == 1
    file.write_text('{"prompt": "x", "chosen": "a"}\n')
    refused = run("--beta", "1")
    assert "line 1" in refused.stderr
