"""KL budgets on real text: is what answers spend their budget, whatever the tail?

    python benchmarks/kl_budget_real.py PROBE

SmolLM2 answers 48 everyday prompts twice at temperature 1, under budgets of 1, 2 and 4 nats.
PROBE steers, a probe that predicts the return distribution of their sentiment (`trimtab arena
everyday` trains one). The tail gets the candidates' mean, as by default, or is cut. Writes
benchmarks/results/kl_budget_real.{json,md}; a later run reuses the results in it.
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
from trimtab_lab.arena.task import REAL_ENGINE
from trimtab_lab.worlds import WORLDS
from trimtab_models import checkpoint
from trimtab_models.bases import base_path

RESULTS = Path(__file__).parent / "results"
PROMPTS, ANSWERS, SEED = 48, 2, 0
BUDGETS = (1.0, 2.0, 4.0)
TAILS = ("mean", "truncate")


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


def report(runs: dict[str, Any]) -> str:
    lines = [
        f"SmolLM2-135M-Instruct, {PROMPTS} test prompts of *everyday* at temperature 1, {ANSWERS} "
        f"answers to each, seed {SEED}, default k and mass. Means ± standard errors over prompts.",
        "",
        "| tail | budget | KL, nats | KL ÷ budget | for the cut | reward |",
        "|---" * 6 + "|",
    ]
    for name, made in runs.items():
        tail, budget = name.split()
        share = np.mean(made["kl"]) / float(budget)
        figures = [mean_se(made["kl"]), f"{share:.3f}", mean_se(made["kl_tail"])]
        row = [tail, budget, *figures, mean_se(made["reward"])]
        lines.append("| " + " | ".join(row) + " |")
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
    for tail, budget in tqdm([(tail, budget) for tail in TAILS for budget in BUDGETS]):
        label = f"{tail} {budget:g}"
        if label in runs:
            continue
        scorers = {"probe": str(arguments.probe)}
        sampler = sampler or Sampler(base_path("smollm2"), scorers, **REAL_ENGINE)
        runs[label] = run(sampler, GuidanceParams(kl_budget=budget, tail=tail))
        file.write_text(json.dumps({"about": about, "runs": runs}) + "\n")
    (arguments.out / "kl_budget_real.md").write_text(report(runs))
    print(report(runs))


if __name__ == "__main__":
    main()
