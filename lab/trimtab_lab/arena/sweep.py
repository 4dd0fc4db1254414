"""A sweep: recommend β and k for the user's own base, scorers and prompts.

The best setting looks better than it is on the prompts that chose it. So one half of the prompts
chooses the setting, and the other half measures it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.params import MASS, PAPERS, K
from trimtab_lab.arena import plots, stats
from trimtab_lab.arena.bench import Bench, Spec
from trimtab_lab.arena.climb import climb
from trimtab_lab.arena.method import Method
from trimtab_lab.arena.methods import METHODS
from trimtab_lab.arena.report import about, plain
from trimtab_lab.arena.runs import Run
from trimtab_lab.arena.scale import Scale
from trimtab_lab.arena.task import Task
from trimtab_models import outputs
from trimtab_models.drawing import Chart
from trimtab_models.outputs import put
from trimtab_models.validation import Estimate

KS = (5, 10, 20, 40)
LADDER = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
SUM, REWARD = "sum", "reward"
BY_MASS = Method(f"mass {MASS:g}", "candidates by mass", SUM, K, MASS, tail="mean")
CUT = Method("k = 10, tail cut", "as PARGS", SUM, **PAPERS["pargs"])
MIN_PROMPTS = 8
MADE_BY = {"command": "sweep"}
LEVEL = 0.05


@dataclass(frozen=True)
class Advice:
    """The recommended setting, and its results on the held-out prompts."""

    candidates: str
    beta: float
    reward: Estimate
    base: Estimate
    kl: float
    p: float
    kl_tail: float = 0.0

    def __str__(self) -> str:
        hint = ""
        if self.kl_tail > self.kl / 2:
            hint = (
                f" Most of the KL, {self.kl_tail:.2f} of {self.kl:.2f} nats, pays for cutting the "
                'tail, before any steering; "tail": "mean" costs nothing at small β.'
            )
        return self._verdict + hint

    @property
    def _verdict(self) -> str:
        if self.p > LEVEL:
            return (
                f"No setting is better than the base on the held-out prompts: the best, β = "
                f"{self.beta:.3g} with {self.candidates}, has reward {self.reward}, the base "
                f"{self.base} (p = {self.p:.2g})."
            )
        return (
            f"Recommended: β = {self.beta:.3g} with {self.candidates}. On {self.reward.n} held-out "
            f"prompts its reward is {self.reward}, the base's {self.base}, its KL {self.kl:.2f} "
            "nats per answer."
        )


def sweep(
    task: Task,
    model: str,
    scorers: Mapping[str, Spec],
    out: Path,
    scale: Scale,
    kl: float | None = None,
    command: str = "",
) -> Advice:
    """Run k × β, recommend a setting, and write results.json, sweep.md and heat-map.png to `out`.

    Args:
        task: the user's task; its gold reward judges.
        model: the base.
        scorers: all of them steer, each with weight 1.
        out: output directory; existing runs in it are reused.
        scale: numbers of prompts and answers, and the ladder of scaled β.
        kl: maximum nats per answer of the recommended setting; None: no maximum.
        command: the command line, for the report.

    Raises:
        TrimtabError: too few prompts, or no setting is within the budget.
        InTheWay: (an OSError) `out` holds something else.
    """
    weights = {"path": "+".join(f"{name}:1" for name in scorers), "family": "composite"}
    bench = Bench(task, model, {**scorers, SUM: weights}, scale, out)
    if len(bench.prompts) < MIN_PROMPTS:
        raise TrimtabError(
            f"there are {len(bench.prompts)} different prompts; at least {MIN_PROMPTS} are needed, "
            "because one half chooses the setting and the other half measures it."
        )
    out = outputs.claim(out, MADE_BY)
    methods = [Method(f"k = {k}", "k", SUM, k, tail="mean") for k in KS] + [BY_MASS, CUT]
    runs = climb(bench, [METHODS["base"], *methods], out / "runs")
    base, settings = runs[0], runs[1:]
    advice = recommend(base, settings, kl)
    results = {
        "advice": advice,
        "kl_budget": kl,
        "prompts": bench.texts,
        "runs": [_figures(run) for run in runs],
        "about": about(command),
    }
    put(out / "results.json", json.dumps(plain(results), ensure_ascii=False) + "\n")
    put(out / "sweep.md", markdown(advice, base, settings, kl))
    _draw(settings, out / "heat-map.png")
    return advice


def recommend(base: Run, settings: Sequence[Run], kl: float | None) -> Advice:
    """Choose a setting on the prompts of even index, and measure it on the others.

    Raises:
        TrimtabError: no setting is within the budget.
    """
    fits = [run for run in settings if kl is None or run.spent[::2].mean() <= kl]
    if not fits:
        least = min(float(run.spent[::2].mean()) for run in settings)
        raise TrimtabError(
            f"no setting stays within {kl:g} nats; the least is {least:.2f}. Raise --kl."
        )
    best = max(fits, key=lambda run: float(run.reward(REWARD)[::2].mean()))
    ours, theirs = best.reward(REWARD)[1::2], base.reward(REWARD)[1::2]
    return Advice(
        candidates=best.method,
        beta=best.settings["guidance"]["beta"],
        reward=stats.estimate(ours),
        base=stats.estimate(theirs),
        kl=float(best.spent[1::2].mean()),
        p=stats.paired(ours, theirs).p,
        kl_tail=float(best.spent_on_tail[1::2].mean()),
    )


def markdown(advice: Advice, base: Run, settings: Sequence[Run], kl: float | None) -> str:
    """sweep.md."""
    budget = "without a budget" if kl is None else f"within {kl:g} nats"
    lines = [
        str(advice),
        "",
        f"Chosen {budget} on every second prompt; the figures below are of all prompts. The base: "
        f"{stats.estimate(base.reward(REWARD))}.",
        "",
        "| candidates | β | reward | KL | of it for the cut tail | words | scorer tokens per token "
        "|",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {run.method} | {run.settings['guidance']['beta']:.3g} | "
        f"{stats.estimate(run.reward(REWARD))} | {run.spent.mean():.2f} | "
        f"{run.spent_on_tail.mean():.2f} | {np.mean(run.words):.1f} | "
        f"{run.scorer_tokens / run.drawn_tokens:.1f} |"
        for run in settings
    ]
    return "\n".join(lines) + "\n"


def _figures(run: Run) -> dict[str, Any]:
    return {
        "method": run.method,
        "settings": dict(run.settings),
        "reward": run.reward(REWARD),
        "kl": run.spent,
        "kl_tail": run.spent_on_tail,
        "words": float(np.mean(run.words)),
        "flops": run.flops,
        "seconds": run.seconds,
    }


def _draw(settings: Sequence[Run], path: Path) -> None:
    names = list(dict.fromkeys(run.method for run in settings))
    betas = sorted({run.settings["guidance"]["beta"] for run in settings})
    table = np.full((len(names), len(betas)), np.nan)
    for run in settings:
        at = names.index(run.method), betas.index(run.settings["guidance"]["beta"])
        table[at] = run.reward(REWARD).mean()
    chart = Chart(height=3)
    plots.shade(chart.panels[0], table, names, [f"{beta:.3g}" for beta in betas])
    chart.panels[0].axes.set(xlabel="β", ylabel="candidates")
    chart.panels[0].title("mean reward")
    chart.save(path)
