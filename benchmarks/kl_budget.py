"""KL budgets on the reviews world: are they met, and do they cost reward?

    python benchmarks/kl_budget.py SCORER

SCORER is a distribution head of the world's consistency reward. The offline engine answers 200 test
prompts at temperature 1: eight answers each under a budget, which reduces the noise in the KL of 50
prompts, and four at a fixed β. All settings use the same prompts and seeds. Budgets of 0.5, 1, 2
and 4 nats are compared with fixed β: the reward of fixed β at the budget's mean KL is interpolated
between the two nearest β, prompt by prompt, and the paired difference is tested. Writes
benchmarks/results/kl_budget.{json,md,png}; a later run reuses the results in it.
"""

import argparse
import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1")

import itertools

import numpy as np
from scipy import stats
from tqdm import tqdm

from trimtab.adapters.vllm.offline import Sampler, engine_options
from trimtab.params import GuidanceParams
from trimtab_lab.worlds import WORLDS
from trimtab_models.drawing import INK, SHADES, Chart
from trimtab_server.bases import ENGINE

RESULTS = Path(__file__).parent / "results"
PROMPTS, SEED = 200, 0
ANSWERS = {"kl_budget": 8, "beta": 4}
CANDIDATES = {"k": 32, "mass": 0.99, "tail": "truncate"}
BUDGETS = (0.5, 1.0, 2.0, 4.0)
BETAS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 20.0, 40.0)
GROUP = 50


def run(sampler: Sampler, params: dict[str, float]) -> dict[str, Any]:
    """KL and reward of every answer, each [prompts][n]."""
    world = WORLDS["reviews"]
    reward, prompts = world.rewards[world.gold], world.prompts("test", PROMPTS, SEED)
    ids = [sampler.tokenizer(text, add_special_tokens=False).input_ids for text in prompts]
    answers = sampler.sample(
        ids,
        max(ANSWERS[name] for name in params),
        seed=SEED,
        temperature=1.0,
        max_tokens=world.max_tokens,
        params=GuidanceParams.parse({**CANDIDATES, **params}),
    )
    decode = sampler.tokenizer.decode
    rewards = [
        [reward(prompt, decode(one.token_ids, skip_special_tokens=True)) for one in group]
        for prompt, group in zip(prompts, answers, strict=True)
    ]
    return {"kl": [[one.kl for one in group] for group in answers], "reward": rewards}


def groups(kl: np.ndarray) -> tuple[float, float]:
    """Largest mean KL of GROUP consecutive prompts, and of 10,000 random groups of that size."""
    means = kl.mean(1)
    rolling = np.convolve(means, np.full(GROUP, 1 / GROUP), "valid")
    rng = np.random.default_rng(SEED)
    random = [means[rng.permutation(len(means))[:GROUP]].mean() for _ in range(10_000)]
    return float(rolling.max()), float(max(random))


def at(runs: dict[str, Any], kl: float) -> np.ndarray | None:
    """Reward of fixed β at a mean KL, [prompts]; None above the KL of the largest β."""
    fixed = [(np.mean(runs[f"beta {b:g}"]["kl"]), runs[f"beta {b:g}"]["reward"]) for b in BETAS]
    fixed.sort(key=lambda pair: pair[0])
    for (low, before), (high, after) in itertools.pairwise(fixed):
        if low <= kl <= high:
            share = (kl - low) / (high - low)
            mixed: np.ndarray = (1 - share) * np.mean(before, 1) + share * np.mean(after, 1)
            return mixed
    return None


def mean_se(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {stats.sem(values):.3f}"


def report(runs: dict[str, Any]) -> str:
    lines = [
        f"{PROMPTS} test prompts of *reviews* at temperature 1, {ANSWERS['kl_budget']} answers "
        f"each under a budget and {ANSWERS['beta']} at a fixed β, reward: consistency. "
        "Means ± standard errors over prompts.",
        "",
        "| budget | KL, nats | KL ÷ budget | worst 50 in a row | worst of 10⁴ random 50 "
        "| largest answer | reward | fixed β at this KL | difference | p (it is worse) |",
        "|---" * 10 + "|",
    ]
    for budget in BUDGETS:
        kl, reward = (np.array(runs[f"budget {budget:g}"][key]) for key in ("kl", "reward"))
        rolling, random = groups(kl)
        fixed = at(runs, kl.mean())
        cells = ["beyond all β", "", ""]
        if fixed is not None:
            difference = reward.mean(1) - fixed
            p = stats.ttest_1samp(difference, 0, alternative="less").pvalue
            cells = [f"{fixed.mean():.3f}", mean_se(difference), f"{p:.2f}"]
        row = [
            f"{budget:g}",
            mean_se(kl.mean(1)),
            f"{kl.mean() / budget:.3f}",
            f"{rolling / budget:.3f}",
            f"{random / budget:.3f}",
            f"{kl.max() / budget:.3f}",
            mean_se(reward.mean(1)),
            *cells,
        ]
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", "| β | KL, nats | reward |", "|---|---|---|"]
    for beta in BETAS:
        result = runs[f"beta {beta:g}"]
        kl, reward = (np.mean(result[key], 1) for key in ("kl", "reward"))
        lines.append(f"| {beta:g} | {mean_se(kl)} | {mean_se(reward)} |")
    return "\n".join(lines) + "\n"


def draw(runs: dict[str, Any], path: Path) -> None:
    chart = Chart(2, height=3.4)
    left, right = chart.panels
    for label, names, shade in (
        ("fixed β", [f"beta {b:g}" for b in BETAS], SHADES[1]),
        ("kl_budget", [f"budget {b:g}" for b in BUDGETS], SHADES[0]),
    ):
        kl, reward = (
            np.array([np.mean(runs[n][key], 1) for n in names]) for key in ("kl", "reward")
        )
        left.line(label, kl.mean(1), reward.mean(1), stats.sem(reward, axis=1), shade=shade)
    left.axes.set(xlabel="mean KL to the base, nats per answer", ylabel="mean exact reward ± s.e.")
    edges = np.linspace(0, 3, 61)
    for budget, shade in zip(BUDGETS, SHADES, strict=False):
        kl = np.ravel(runs[f"budget {budget:g}"]["kl"]) / budget
        counts, _ = np.histogram(kl, edges)
        right.line(
            f"{budget:g} nats", edges[:-1], counts, shade=shade, marker="", drawstyle="steps-post"
        )
        right.labels[-1].at = float(edges[counts.argmax()]), float(counts.max())
    right.axes.axvline(1.1, color=INK, linewidth=0.7, linestyle=":")
    right.axes.set(xlabel="KL of an answer ÷ its budget", ylabel="answers")
    chart.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scorer", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "kl_budget.json"
    weights = (arguments.scorer / "model.safetensors").read_bytes()
    about = {
        "scorer_sha256": hashlib.sha256(weights).hexdigest(),
        "vllm": version("vllm-cpu"),
        "torch": version("torch"),
        "seed": SEED,
    }
    kept = json.loads(file.read_text()) if file.exists() else {}
    runs = kept.get("runs", {}) if kept.get("about") == about else {}
    settings = {
        **{f"budget {b:g}": {"kl_budget": b} for b in BUDGETS},
        **{f"beta {b:g}": {"beta": b} for b in BETAS},
    }
    world = WORLDS["reviews"]
    missing = {name: params for name, params in settings.items() if name not in runs}
    if missing:
        sampler = Sampler(
            str(world.base), {"c": str(arguments.scorer)}, **engine_options(ENGINE["demo"])
        )
        for name, params in tqdm(missing.items()):
            runs[name] = run(sampler, params)
            file.write_text(json.dumps({"about": about, "runs": runs}) + "\n")
    (arguments.out / "kl_budget.md").write_text(report(runs))
    draw(runs, arguments.out / "kl_budget.png")
    print(report(runs))


if __name__ == "__main__":
    main()
