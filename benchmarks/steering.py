"""Measure steering on the demo world by its exact rewards, through the real server.

    python benchmarks/steering.py

Every setting uses the same 100 prompts and seeds. Measured are mean reward ± standard error and KL:
for each scorer over β; for all three composed; for PARGS against the same network trained as a
full-sequence reward model (ARGS), with a paired Wilcoxon signed-rank test; for candidates by mass
against k = 10.
Writes benchmarks/results/steering.{json,md,png}. The ARGS model is trained first (minutes, once).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import stats
from served import Server, mean_se
from tqdm import tqdm

from trimtab_models import demo
from trimtab_models.drawing import INK, SHADES, Chart

RESULTS = Path(__file__).parent / "results"
WORK = Path(__file__).parents[1] / ".work"
PROMPTS = 100
FULL_SEQUENCE = "bradley-terry-full"
BETAS = (-4, -2, 0, 2, 4, 8)
NAMES = tuple(demo.rewards)
CUT = {"k": 32, "mass": 0.99, "tail": "truncate"}


def args_scorer(rollouts: Path | None) -> Path:
    """A scorer like the sentiment scorer, trained with the full-sequence objective."""
    from trimtab_models.demo import build

    out = WORK / "args"
    if not out.exists():
        WORK.mkdir(exist_ok=True)
        records = rollouts or WORK / "rollouts.jsonl"
        if not records.exists():
            build.roll_out(demo.base(), records)
        build.train_scorer("sentiment", demo.base(), records, out, FULL_SEQUENCE)
    return out


def report(runs: dict[str, dict]) -> str:
    lines = [f"{PROMPTS} prompts, one answer each at temperature 1, exact rewards in [−1, 1].", ""]
    lines += ["## Reward and KL over β (mass 0.99)", "", "| scorer | β | reward | KL, nats |"]
    lines += ["|---|---|---|---|"]
    for name in NAMES:
        for beta in BETAS:
            run = runs[f"{name} {beta}"]
            reward = mean_se(run["rewards"][name])
            lines.append(f"| {name} | {beta} | {reward} | {mean_se(run['kl'])} |")
    lines += ["", "## All three composed, weight 1 each", ""]
    lines += ["| β | " + " | ".join(NAMES) + " | KL, nats |", "|---" * (len(NAMES) + 2) + "|"]
    for beta in (0, 2, 4):
        run = runs[f"all {beta}"]
        cells = " | ".join(mean_se(run["rewards"][name]) for name in NAMES)
        lines.append(f"| {beta} | {cells} | {mean_se(run['kl'])} |")
    lines += ["", "## PARGS against ARGS (sentiment, same network, data and budget)", ""]
    lines += ["| β | PARGS | KL | ARGS | KL | paired Wilcoxon p (PARGS > ARGS) |", "|---" * 6 + "|"]
    for beta in (2, 4, 8):
        ours, theirs = runs[f"sentiment {beta}"], runs[f"args {beta}"]
        test = stats.wilcoxon(
            ours["rewards"]["sentiment"], theirs["rewards"]["sentiment"], alternative="greater"
        )
        lines.append(
            f"| {beta} | {mean_se(ours['rewards']['sentiment'])} | {mean_se(ours['kl'])} "
            f"| {mean_se(theirs['rewards']['sentiment'])} | {mean_se(theirs['kl'])} "
            f"| {test.pvalue:.1e} |"
        )
    lines += ["", "## Candidates: by mass, and k = 10 as in the papers (β = 4)", ""]
    lines += [
        "| scorers | candidates | reward | KL, nats | scorer tokens ÷ token | steps skipped |"
    ]
    lines += ["|---" * 6 + "|"]
    for name in (*NAMES, "all"):
        for label, key in (("mass 0.99", f"{name} 4"), ("k = 10, mass 1", f"{name} 4 k10")):
            run = runs[key]
            own = NAMES if name == "all" else (name,)
            reward = ", ".join(mean_se(run["rewards"][n]) for n in own)
            lines.append(
                f"| {name} | {label} | {reward} | {mean_se(run['kl'])} "
                f"| {run['scorer_tokens_per_token']:.2f} | {100 * run['skipped']:.0f} % |"
            )
    return "\n".join(lines) + "\n"


def draw(runs: dict[str, dict], path: Path) -> None:
    chart = Chart(2, height=3.4, sharey=True)
    left, right = chart.panels
    for name, shade in zip(NAMES, SHADES, strict=False):
        own = [runs[f"{name} {beta}"] for beta in BETAS]
        rewards = [run["rewards"][name] for run in own]
        means, errors = np.mean(rewards, axis=1), stats.sem(rewards, axis=1)
        left.line(name, BETAS, means, errors, shade=shade, label=None)
        chosen = [i for i, beta in enumerate(BETAS) if beta >= 0]
        kl = [np.mean(own[i]["kl"]) for i in chosen]
        right.line(name, kl, means[chosen], errors[chosen], shade=shade)
    left.axes.set(xlabel="β", ylabel="mean exact reward ± s.e.")
    left.axes.axhline(1, color=INK, linewidth=0.7, linestyle=":")
    right.axes.set_xlabel("KL to the base, nats per answer (β = 0, 2, 4, 8)")
    chart.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=Path, help="rollouts of demo.build, if kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    together = dict.fromkeys(NAMES, 1.0)
    settings = {
        **{f"{n} {b}": {"scorers": {n: 1.0}, "beta": b, **CUT} for n in NAMES for b in BETAS},
        **{f"all {b}": {"scorers": together, "beta": b, **CUT} for b in (0, 2, 4)},
        **{f"args {b}": {"scorers": {"args": 1.0}, "beta": b, **CUT} for b in (2, 4, 8)},
        **{
            f"{n} 4 k10": {
                "scorers": together if n == "all" else {n: 1.0},
                "beta": 4,
                "paper": "pargs",
            }
            for n in (*NAMES, "all")
        },
    }
    server = Server(["--scorer", f"args={args_scorer(arguments.rollouts)}"], PROMPTS)
    try:
        runs = {label: server.run(**guidance) for label, guidance in tqdm(settings.items())}
    finally:
        server.stop()
    (arguments.out / "steering.json").write_text(json.dumps(runs) + "\n")
    (arguments.out / "steering.md").write_text(report(runs))
    draw(runs, arguments.out / "steering.png")
    print(report(runs))


if __name__ == "__main__":
    main()
