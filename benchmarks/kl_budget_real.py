"""KL budgets on real text: is what answers spend their budget, and what does it gain?

    python benchmarks/kl_budget_real.py PROBE

SmolLM2 answers 48 everyday prompts twice at temperature 1, under budgets of 1, 2 and 4 nats and at
fixed β. PROBE steers, a probe of their kindness (`trimtab demo train` makes one), or the reward
itself as a function. Neither has a return distribution: a budget follows the answer's own pace.
The tail gets the candidates' mean, as by default, or is cut. A budget's reward is compared with
that of fixed β at the same mean KL, prompt by prompt. Writes
benchmarks/results/kl_budget_real.{json,md}; a later run reuses the results in it. Takes about ten
minutes on one core.
"""

import argparse
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1")

import numpy as np
from scipy import stats
from tqdm import tqdm

from trimtab.adapters.vllm.offline import Sampler
from trimtab.params import GuidanceParams
from trimtab_lab.arena.stats import at_kl
from trimtab_lab.arena.task import REAL_ENGINE
from trimtab_lab.worlds import WORLDS
from trimtab_models import checkpoint
from trimtab_models.bases import base_path

RESULTS = Path(__file__).parent / "results"
PROMPTS, ANSWERS, SEED = 48, 2, 0
BUDGETS = (1.0, 2.0, 4.0)
TAILS = ("mean", "truncate")
BETAS = {"probe": (0.0, 4.0, 6.0, 9.0, 14.0), "function": (0.0, 2.0, 4.0, 6.0, 9.0)}
FUNCTION = {
    "path": "trimtab_models.smollm2.rewards:kindness",
    "family": "function",
    "reads": "pair",
}


def run(sampler: Sampler, params: GuidanceParams) -> dict[str, Any]:
    """KL, its part for cutting the tail, and reward of every answer, each [prompts][answers]."""
    world = WORLDS["everyday"]
    prompts = world.prompts("test", PROMPTS, SEED)
    ids = [sampler.tokenizer(text, add_special_tokens=False).input_ids for text in prompts]
    answers = sampler.sample(
        ids, ANSWERS, seed=SEED, temperature=1.0, max_tokens=world.max_tokens, params=params
    )
    reward, decode = world.rewards[world.gold], sampler.tokenizer.decode
    return {
        "kl": [[one.kl for one in group] for group in answers],
        "kl_tail": [[one.kl_tail for one in group] for group in answers],
        "reward": [
            [reward(prompt, decode(one.token_ids, skip_special_tokens=True)) for one in group]
            for prompt, group in zip(prompts, answers, strict=True)
        ],
    }


def mean_se(values: Any, digits: int = 2) -> str:
    by_prompt = np.mean(values, 1)
    return f"{by_prompt.mean():.{digits}f} ± {stats.sem(by_prompt):.{digits}f}"


def settings() -> dict[str, dict[str, Any]]:
    """Label → guidance of each run."""
    made: dict[str, dict[str, Any]] = {}
    for scorer, betas in BETAS.items():
        for tail in TAILS:
            for budget in BUDGETS:
                made[f"{scorer} {tail} {budget:g}"] = {"kl_budget": budget, "tail": tail}
        for beta in betas:
            made[f"{scorer} β {beta:g}"] = {"beta": beta}
    return {label: {"scorers": {label.split()[0]: 1.0}, **fields} for label, fields in made.items()}


def report(runs: dict[str, Any]) -> str:
    lines = [
        f"SmolLM2-135M-Instruct, {PROMPTS} test prompts of *everyday* at temperature 1, {ANSWERS} "
        f"answers to each, seed {SEED}, default k and mass. Means ± standard errors over prompts. "
        "*Fixed β*: the reward at the same mean KL, between two settings with the mean tail; "
        "*p* of the paired difference, both sides.",
        "",
        "| scorer | tail | budget | KL, nats | KL ÷ budget | largest answer | for the cut | reward "
        "| fixed β | difference | p |",
        "|---" * 11 + "|",
    ]
    for scorer, betas in BETAS.items():
        fixed = [runs[f"{scorer} β {beta:g}"] for beta in betas]
        points = [(np.mean(one["reward"], 1), np.mean(one["kl"], 1)) for one in fixed]
        for tail in TAILS:
            for budget in BUDGETS:
                made = runs[f"{scorer} {tail} {budget:g}"]
                spent = float(np.mean(made["kl"]))
                against = at_kl(points, spent)
                assert against is not None
                difference = np.mean(made["reward"], 1) - against
                p = stats.ttest_1samp(difference, 0).pvalue
                figures = [
                    *(mean_se(made["kl"]), f"{spent / budget:.3f}", f"{np.max(made['kl']):.1f}"),
                    *(mean_se(made["kl_tail"]), mean_se(made["reward"]), f"{against.mean():.2f}"),
                    *(mean_se(difference[:, None]), f"{p:.2f}"),
                ]
                lines.append(f"| {scorer} | {tail} | {budget:g} | " + " | ".join(figures) + " |")
    lines += ["", "| scorer | β | KL, nats | reward |", "|---|---|---|---|"]
    for scorer, betas in BETAS.items():
        for beta in betas:
            made = runs[f"{scorer} β {beta:g}"]
            lines.append(
                f"| {scorer} | {beta:g} | {mean_se(made['kl'])} | {mean_se(made['reward'])} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("probe", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "kl_budget_real.json"
    info = checkpoint.read_info(arguments.probe).model_dump(mode="json", exclude={"base_model"})
    about = {"probe": info, "vllm": version("vllm-cpu"), "seed": SEED}
    kept = json.loads(file.read_text()) if file.exists() else {}
    runs = kept.get("runs", {}) if kept.get("about") == about else {}
    sampler = None
    for label, fields in tqdm(settings().items()):
        if label in runs:
            continue
        scorers = {"probe": str(arguments.probe), "function": FUNCTION}
        sampler = sampler or Sampler(base_path("smollm2"), scorers, **REAL_ENGINE)
        runs[label] = run(sampler, GuidanceParams.parse(fields))
        file.write_text(json.dumps({"about": about, "runs": runs}) + "\n")
    (arguments.out / "kl_budget_real.md").write_text(report(runs))
    print(report(runs))


if __name__ == "__main__":
    main()
