"""Train every objective on the demo world, steer with it, and measure the exact reward.

    python benchmarks/objectives.py

All objectives use one reward (sentiment, in [−1, 1]), one set of rollouts of the demo base and one
network (the base's two lower layers; language models start from the whole base). The training data
of each objective is made from those rollouts: rewards, pairs or rankings. Each scorer then steers
the base through the real server on 200 prompts at three β, with candidates by mass (0.99) and the
papers' k = 10. Writes benchmarks/results/objectives.{json,md,png}. An interrupted run resumes from
.work/objectives. Takes about an hour on two cores.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import stats
from served import Server, mean_se
from tqdm import tqdm

from trimtab_lab.arena.stats import at_kl, paired
from trimtab_models import data, demo
from trimtab_models.drawing import Chart

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
WORK = ROOT / ".work" / "objectives"
REWARD = "sentiment"
TRAIN_PROMPTS, COMPLETIONS, PAIRS, SHARPNESS = 768, 8, 8000, 2.0
HELD_OUT = 96  # prompts for validation, with eight other answers each
EPOCHS = {"rollouts": 2, "pairs": 1, "rankings": 3}  # about the same number of answers for each
PROMPTS = 200
CANDIDATES = {
    "mass 0.99": {"k": 32, "mass": 0.99, "tail": "truncate"},
    "k = 10": {"paper": "pargs"},
}
KL = 1.0  # nats per answer at which the frontiers are compared
SHOWN_KL = 3.0  # where the chart ends: some lines go on, to 47 nats
SERVED_AT_ONCE = 7
EXPECTED = (  # (better, worse) at equal KL
    ("distribution", "td-lambda"),
    ("td-lambda", "cd-fudge"),
    ("bradley-terry", "bradley-terry-full"),
)
NOTES = """\
The reasons are readings, not experiments, where they say "likely".

- One training seed each; differences of a few hundredths between neighbours mean little.
- The return distribution stays behind the mean value here. Its soft value at a high β leans on
  the probability of the best returns, likely the part of a histogram that 5,500 answers teach
  worst: its reward levels off at less KL. With targets from the histograms that follow (λ = 0.95)
  it comes nearer.
- TD(λ) and TD(1), CD-FUDGE, are equal: answers have some 35 tokens and one reward without noise,
  so there is likely little variance for bootstrapping to save.
- Full-sequence Bradley-Terry (ARGS) does steer, for this reward is a sum over words and its score
  of a prefix is not arbitrary; but it pays several times the KL for it.
- FaRMA hardly steers here. Its target for a prefix is the largest of 1,024 outputs, most of which
  the 8,000 pairs never show at that place; likely, optimism about them outweighs what the ends
  teach. Its prefix-AUC, below 0.6, gives the warning.
- GenARM and DPO change a whole language model, its fluency with it: much KL for the reward. Of
  GenARM the prefix-AUC counts the base's own log-probabilities in, hence says little.
- One-step targets (td-0, soft-td, the Q heads, ILQL) reach back a token at a time and were given
  more passes or a smaller step; the settings stand in the script."""
VALUE_BETAS, PAIR_BETAS = (2, 4, 8), (1, 2, 4)


@dataclass
class Plan:
    """How an objective is trained, and the β at which its scorer is measured."""

    data: str = "rollouts"
    betas: tuple[float, ...] = VALUE_BETAS
    settings: dict[str, object] = field(default_factory=dict)


# A row of a vocabulary head is updated only when its token occurs, which needs a smaller step.
VOCABULARY = {"learning_rate": 3e-4}
# The conservative term raises Q at every sampled token, so it also rewards length.
ILQL = {"expectile": 0.6, "conservative": 0.001}
LANGUAGE = {"layers": None, "learning_rate": 5e-4, "options.beta": 0.3}
PLANS = {
    "bradley-terry": Plan("pairs", PAIR_BETAS),
    "bradley-terry-full": Plan("pairs", PAIR_BETAS),
    "plackett-luce": Plan("rankings"),
    "td-lambda": Plan(),
    "td-0": Plan(settings={"epochs": 4}),
    "cd-fudge": Plan(),
    "fudge": Plan(betas=PAIR_BETAS, settings={"options.threshold": 0}),
    "rad": Plan(),
    "q-exact": Plan(settings=VOCABULARY),
    "q-sampled": Plan(settings=VOCABULARY | {"epochs": 3}),
    "dueling-q": Plan(settings=VOCABULARY),
    "value-advantage": Plan(settings=VOCABULARY),
    "cd-q": Plan(settings=VOCABULARY),
    "ilql": Plan(settings=VOCABULARY | {"epochs": 8, "options": ILQL}),
    "farma": Plan("pairs", PAIR_BETAS, VOCABULARY | {"epochs": 4, "options.weight": 0.1}),
    "soft-value": Plan(settings={"options.eta": 0.25}),
    "soft-td": Plan(settings={"options.eta": 0.5, "epochs": 4}),
    "distribution": Plan(settings={"options.support": [-1, 1], "options.bins": 21}),
    "distribution-td": Plan(
        settings={"options.support": [-1, 1], "options.bins": 21, "options.decay": 0.95}
    ),
    "genarm": Plan("pairs", PAIR_BETAS, LANGUAGE),
    "dpo": Plan("pairs", PAIR_BETAS, LANGUAGE),
}


def prepare(rollouts: Path | None) -> None:
    """Write the three files of training data, from one set of rollouts."""
    from trimtab_models.demo import build
    from trimtab_models.demo import rollouts as world

    WORK.mkdir(parents=True, exist_ok=True)
    raw = rollouts or WORK.parent / "rollouts.jsonl"
    if not raw.exists():
        build.roll_out(demo.base(), raw)
    if (WORK / "rankings.jsonl").exists():
        return
    records = data.read(raw)[: TRAIN_PROMPTS * COMPLETIONS]
    labelled = world.label(records, demo.rewards[REWARD])
    data.write(WORK / "rollouts.jsonl", labelled)
    more = data.read(raw)[TRAIN_PROMPTS * COMPLETIONS :]
    held_out = [record for i, record in enumerate(more) if i % TRAIN_PROMPTS < HELD_OUT]
    data.write(WORK / "held-out.jsonl", world.label(held_out, demo.rewards[REWARD]))
    data.write(WORK / "pairs.jsonl", data.preferences(labelled, PAIRS, 0, SHARPNESS))
    data.write(WORK / "rankings.jsonl", data.rankings(labelled, 4, 0))


def train(name: str) -> None:
    """Train one scorer with the public command."""
    plan, out = PLANS[name], WORK / name
    if (out / "config.json").exists():
        return
    settings = {"data": WORK / f"{plan.data}.jsonl", "out": out, "epochs": EPOCHS[plan.data]}
    settings |= plan.settings
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={_yaml(value)}")]
    command = [sys.executable, "-m", "trimtab_models.training", name]
    command += ["--config", str(ROOT / "configs" / "demo.yaml"), *sets]
    with (WORK / f"{name}.log").open("wb") as log:
        subprocess.run(command, check=True, env=_one_thread(), stdout=log, stderr=log)


def _yaml(value: object) -> str:
    return str(value) if isinstance(value, Path) else json.dumps(value)


def _one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def evaluate(names: list[str]) -> dict[str, dict]:
    """Every setting of some scorers, on one server; each setting has its own result file."""
    settings = {
        f"{name} {label} {beta:g}": {"scorers": {name: 1.0}, "beta": beta, **candidates}
        for name in names
        for label, candidates in CANDIDATES.items()
        for beta in PLANS[name].betas
    }
    settings["base"] = {"scorers": {names[0]: 1.0}, "beta": 0.0}
    folder = WORK / "runs"
    folder.mkdir(exist_ok=True)
    missing = {
        label: guidance
        for label, guidance in settings.items()
        if not (folder / f"{label}.json").exists()
    }
    if missing:
        flags = [f for name in names for f in ("--scorer", f"{name}={WORK / name}")]
        server = Server(flags, prompts=PROMPTS)
        try:
            for label, guidance in tqdm(missing.items(), unit="setting"):
                run = server.run(**guidance)
                kept = {"rewards": run["rewards"][REWARD], "kl": run["kl"]}
                kept |= {key: run[key] for key in ("guidance", "tokens", "skipped", "examples")}
                (folder / f"{label}.json").write_text(json.dumps(kept))
        finally:
            server.stop()
    return {label: json.loads((folder / f"{label}.json").read_text()) for label in settings}


def prefix_auc(name: str) -> float:
    """How often a scorer's order on prefixes equals the final order, on held-out answers."""
    import torch
    from transformers import AutoTokenizer

    from trimtab_models import checkpoint, networks
    from trimtab_models.report.validate import validate

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(demo.base())
    model, info = checkpoint.load(WORK / name)
    reference = networks.vocabulary_head(info.reference) if info.reference else None
    held_out = data.load(str(WORK / "held-out.jsonl"), "rollouts", tokenizer)
    pad_id = tokenizer.pad_token_id
    return validate(model, info, held_out, None, pad_id, reference=reference).prefix_auc.mean.mean


def at_one_kl(runs: dict[str, dict], name: str, label: str) -> np.ndarray:
    """Each prompt's reward at KL, read between the settings on both sides of it."""
    points = [runs["base"]] + [runs[f"{name} {label} {beta:g}"] for beta in PLANS[name].betas]
    values = at_kl([(np.array(one["rewards"]), np.array(one["kl"])) for one in points], KL)
    assert values is not None  # the base spends nothing
    return values


def report(runs: dict[str, dict], names: list[str], aucs: dict[str, float]) -> str:
    base = runs["base"]
    lines = [
        f"{PROMPTS} prompts, one answer each at temperature 1; the exact {REWARD} reward in "
        "[−1, 1], mean ± s.e.; KL to the base in nats per answer. "
        f"The base: {mean_se(base['rewards'])}.",
        "",
    ]
    for label in CANDIDATES:
        lines += [f"## Candidates: {label}", ""]
        lines += [
            f"| objective | β: reward, KL | | | reward at KL {KL:g} | prefix-AUC |",
            "|---|---|---|---|---|---|",
        ]
        ends = {name: at_one_kl(runs, name, label) for name in names}
        for name in sorted(names, key=lambda n: -ends[n].mean()):
            cells = []
            for beta in PLANS[name].betas:
                run = runs[f"{name} {label} {beta:g}"]
                cells.append(f"{beta:g}: {mean_se(run['rewards'])}, {np.mean(run['kl']):.2f}")
            lines.append(
                f"| {name} | {' | '.join(cells)} | {mean_se(ends[name])} | {aucs[name]:.3f} |"
            )
        lines.append("")
    lines += [
        f"## Expected orders, at KL {KL:g}",
        "",
        "Each prompt's reward is read between neighbouring settings, linear in √KL; differences "
        "are paired by prompt, p is Student's (one-sided).",
        "",
        "| better | worse | candidates | difference | p |",
        "|---|---|---|---|---|",
    ]
    for better, worse in EXPECTED:
        if better in names and worse in names:
            for label in CANDIDATES:
                sides = [at_one_kl(runs, name, label) for name in (better, worse)]
                p, gain = paired(*sides, read=True).p, mean_se(sides[0] - sides[1])
                lines.append(f"| {better} | {worse} | {label} | {gain} | {p:.1e} |")
    ends = [at_one_kl(runs, name, "mass 0.99").mean() for name in names]
    rank = stats.spearmanr([aucs[name] for name in names], ends)
    lines += ["", "## Does validation predict steering?", ""]
    lines += [
        f"Over the {len(names)} objectives, Spearman's ρ between prefix-AUC and reward at KL "
        f"{KL:g} (mass 0.99) is {rank.statistic:.2f} (p = {rank.pvalue:.0e}).",
        "",
        "## What differs from what was expected, and why",
        "",
        NOTES,
    ]
    return "\n".join(lines) + "\n"


def draw(runs: dict[str, dict], names: list[str], path: Path) -> None:
    chart = Chart(2, height=8.4, stacked=True, sharex=True)
    for panel, label in zip(chart.panels, CANDIDATES, strict=True):
        for name in names:
            points = [runs["base"]] + [runs[f"{name} {label} {b:g}"] for b in PLANS[name].betas]
            kl = [np.mean(point["kl"]) for point in points]
            rewards = [point["rewards"] for point in points]
            errors = [stats.sem(one) for one in rewards]
            panel.line(name, kl, [np.mean(one) for one in rewards], errors)
        panel.title(label)
        panel.axes.set(xlim=(0, SHOWN_KL), ylabel=f"mean exact {REWARD} ± s.e.")
        panel.fit()
    chart.panels[-1].axes.set_xlabel("KL to the base, nats per answer")
    chart.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=PLANS, help="objectives; default: all")
    parser.add_argument("--rollouts", type=Path, help="rollouts of demo.build, if kept")
    parser.add_argument("--train-only", action="store_true")
    arguments = parser.parse_args()
    names = arguments.only or list(PLANS)
    prepare(arguments.rollouts)
    # One thread each: two trainings on two cores are faster than one on both.
    with ThreadPoolExecutor(2) as pool:
        list(tqdm(pool.map(train, names), total=len(names), desc="training", unit="objective"))
    if arguments.train_only:
        return
    runs: dict[str, dict] = {}
    for start in range(0, len(names), SERVED_AT_ONCE):
        runs |= evaluate(names[start : start + SERVED_AT_ONCE])
    aucs = {name: prefix_auc(name) for name in tqdm(names, desc="prefix-AUC")}
    text = report(runs, names, aucs)
    (RESULTS / "objectives.json").write_text(json.dumps({"runs": runs, "prefix_auc": aucs}) + "\n")
    (RESULTS / "objectives.md").write_text(text)
    draw(runs, names, RESULTS / "objectives.png")
    print(text)


if __name__ == "__main__":
    main()
