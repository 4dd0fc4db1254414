"""What caution does to over-optimisation: an ensemble of few answers, steered ever harder.

    python benchmarks/caution.py [--seeds 0 1 2]

The base is the demo's, the reward is sentiment, which is known exactly. Values are learned from
only 48 answers of the base (24 prompts, two each): once with one head, once with eight heads on one
network, each on its own resample of the prompts. Both steer 200 test prompts, one answer each, from
β = 0 to 64, the ensemble with λ = 0, 1 and 2. A seed is that of the answers learned from, of the
trainings and of the steered answers. Almost all that the base may say is a candidate, so that a
value can be wrong about some. Writes benchmarks/results/caution.{json,md,png}; an interrupted run
resumes from .work/caution.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from trimtab.params import GuidanceParams
from trimtab_lab.arena import workers
from trimtab_lab.arena.stats import at_kl, estimate, holm, paired
from trimtab_models import data, demo
from trimtab_models.drawing import Chart
from trimtab_models.drawing.palette import SHADES

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
WORK = ROOT / ".work" / "caution"
REWARD = "sentiment"
TRAIN_PROMPTS, COMPLETIONS, HEADS = 24, 2, 8
TRAINING = {"layers": 2, "epochs": 30, "batch_size": 16, "learning_rate": 3e-4}
PROMPTS, MAX_TOKENS = 200, 48
CANDIDATES = {"k": 16, "mass": 0.999, "tail": "mean"}
BETAS = (4.0, 16.0, 64.0)
ARMS: dict[str, tuple[str, float]] = {
    "one head": ("one", 0.0),
    "ensemble, λ = 0": ("many", 0.0),
    "ensemble, λ = 1": ("many", 1.0),
    "ensemble, λ = 2": ("many", 2.0),
}
"""Scorer and λ of each arm."""
AGAINST = "ensemble, λ = 0"
KLS = (1.0, 4.0, 16.0)
"""Nats per answer at which the arms are compared, beside each β."""
PLAN = [("base", 0.0), *((arm, beta) for arm in ARMS for beta in BETAS)]
ENGINE = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 256}


def train(seed: int) -> None:
    """Train both scorers of a seed as `trimtab train` does."""
    import torch

    from trimtab_models import networks, pretrained
    from trimtab_models.demo import rollouts
    from trimtab_models.training.config import load
    from trimtab_models.training.run import run

    answers = WORK / f"answers-{seed}.jsonl"
    if not answers.exists():
        tokenizer = pretrained.tokenizer(demo.base())
        model = networks.build("language", demo.base(), dtype=torch.float32)
        prompts = [demo.chat(one) for one in demo.prompts("train", TRAIN_PROMPTS, seed)]
        sampled = rollouts.sample(model, tokenizer, prompts * COMPLETIONS, seed)
        data.write(answers, rollouts.label(sampled, demo.rewards[REWARD]))
    for name, more in (("one", {}), ("many", {"ensemble": HEADS})):
        fields = {"base": "demo", "data": str(answers), "out": str(WORK / f"{name}-{seed}")}
        fields |= {"seed": seed, "trainer.disable_tqdm": True, **TRAINING, **more}
        run(load(None, [f"{key}={json.dumps(v)}" for key, v in fields.items()], "cd-fudge"))


def steer(seed: int, path: Path) -> None:
    """Write rewards and KL of each arm at each β."""
    from trimtab.adapters.vllm.offline import Sampler

    train(seed)
    scorers = {name: str(WORK / f"{name}-{seed}") for name in ("one", "many")}
    sampler = Sampler(str(demo.base()), scorers, **ENGINE)
    tokenizer = sampler.tokenizer
    texts = [demo.chat(prompt) for prompt in demo.prompts("test", PROMPTS, seed=5)]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    runs = json.loads(path.read_text()) if path.exists() else {}
    for arm, beta in tqdm(PLAN, desc=f"seed {seed}", unit="run"):
        key = f"{arm} {beta:g}"
        if key in runs:
            continue
        scorer, size = ARMS.get(arm, ("one", 0.0))
        caution = {scorer: size} if size else None
        params = GuidanceParams(
            scorers={scorer: 1.0}, beta=beta, caution=caution, **(CANDIDATES if beta else {})
        )
        groups = sampler.sample(
            ids, 1, seed=seed, temperature=1.0, max_tokens=MAX_TOKENS, params=params
        )
        answers = [group[0] for group in groups]
        written = [tokenizer.decode(one.token_ids, skip_special_tokens=True) for one in answers]
        rewards = [demo.rewards[REWARD](t, w) for t, w in zip(texts, written, strict=True)]
        runs[key] = {
            "reward": [round(value, 4) for value in rewards],
            "kl": [round(one.kl, 4) for one in answers],
            "example": written[0],
        }
        path.write_text(json.dumps(runs))


def run_of(runs: list[dict[str, Any]], arm: str, beta: float) -> bool:
    """Whether every seed has this setting."""
    return all(f"{arm} {beta:g}" in one for one in runs)


def means(runs: list[dict[str, Any]], arm: str, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Each prompt's reward and KL, the means over the seeds, [prompts] each."""
    each = [one[f"{arm} {beta:g}"] for one in runs]
    return tuple(np.mean([one[name] for one in each], 0) for name in ("reward", "kl"))


def points(runs: list[dict[str, Any]], arm: str) -> list[tuple[np.ndarray, np.ndarray]]:
    steered = [means(runs, arm, beta) for beta in BETAS if run_of(runs, arm, beta)]
    return [means(runs, "base", 0.0), *steered]


def table(runs: list[dict[str, Any]], seeds: list[int]) -> str:
    """The results of all seeds, as text."""
    base = estimate(means(runs, "base", 0.0)[0])
    lines = [
        f"{REWARD.capitalize()} on the demo, learned from {TRAIN_PROMPTS * COMPLETIONS} answers of "
        f"the base; {HEADS} heads. {PROMPTS} test prompts, one answer each, means over seeds "
        f"{', '.join(map(str, seeds))} ± s.e. over prompts. The base: {base.mean:.3f} ± "
        f"{base.standard_error:.3f}.",
        "",
        "| | " + " | ".join(f"β = {beta:g}" for beta in BETAS) + " |",
        "|---" * (len(BETAS) + 1) + "|",
    ]
    for arm in ARMS:
        cells = []
        for beta in BETAS:
            if not run_of(runs, arm, beta):
                cells.append("–")
                continue
            reward, kl = means(runs, arm, beta)
            one = estimate(reward)
            cells.append(f"{one.mean:.3f} ± {one.standard_error:.3f} ({kl.mean():.1f} nats)")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    lines += ["", *tests(runs, seeds)]
    return "\n".join(lines) + "\n"


def tests(runs: list[dict[str, Any]], seeds: list[int]) -> list[str]:
    """Each arm against the ensemble's mean, paired over prompts, at one β and at one KL."""
    others = [arm for arm in ARMS if arm != AGAINST]
    family = []
    for arm in others:
        for beta in BETAS[-2:]:
            if not run_of(runs, arm, beta):
                continue
            both = means(runs, arm, beta)[0], means(runs, AGAINST, beta)[0]
            family.append((arm, f"β = {beta:g}", *both, False))
        for kl in KLS:
            both = at_kl(points(runs, arm), kl), at_kl(points(runs, AGAINST), kl)
            if both[0] is not None and both[1] is not None:
                family.append((arm, f"{kl:g} nats", *both, True))
    results = [paired(ours, theirs, read=read) for _, _, ours, theirs, read in family]
    back = [paired(theirs, ours, read=read) for _, _, ours, theirs, read in family]
    adjusted = holm([min(1.0, 2 * min(a.p, b.p)) for a, b in zip(results, back, strict=True)])
    lines = [
        f"Reward less that of “{AGAINST}”, paired over the {PROMPTS} prompts (means over "
        f"{len(seeds)} seeds): 95 % bootstrap interval, two-sided p (Wilcoxon's at one β, "
        f"Student's at one KL) with Holm's correction over all {len(family)}. “n nats”: each arm "
        "interpolated between its β to that mean KL; an arm that never spends it counts with what "
        "it spends at most. “–” above: not run with every seed.",
        "",
        "| arm | at | difference | p |",
        "|---|---|---|---|",
    ]
    for (arm, at, *_), one, p in zip(family, results, adjusted, strict=True):
        interval = f"{one.difference:+.3f} ({one.low:+.3f} to {one.high:+.3f})"
        lines.append(f"| {arm} | {at} | {interval} | {p:.2g} |")
    return lines


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Reward over KL, and over β."""
    chart = Chart(2, height=8.0, stacked=True)
    for arm, shade in zip(ARMS, SHADES, strict=False):
        settings = points(runs, arm)
        kl = [spent.mean() for _, spent in settings]
        rewards = [estimate(reward) for reward, _ in settings]
        heights = [one.mean for one in rewards]
        errors = [one.standard_error for one in rewards]
        chart.panels[0].line(arm, np.sqrt(kl), heights, errors, shade=shade)
        chart.panels[1].line(arm, BETAS[: len(kl) - 1], heights[1:], errors[1:], shade=shade)
    chart.panels[0].axes.set(
        xlabel="√KL to the base, √nats per answer", ylabel="true reward ± s.e."
    )
    chart.panels[1].axes.set(xlabel="β", xscale="log", ylabel="true reward ± s.e.")
    for panel in chart.panels:
        panel.fit()
    chart.save(path)


def write(seeds: list[int]) -> None:
    """Write the results of seeds that were run."""
    runs = [json.loads((WORK / f"seed-{seed}.json").read_text()) for seed in seeds]
    text = table(runs, seeds)
    print(text)
    kept = {str(seed): one for seed, one in zip(seeds, runs, strict=True)}
    (RESULTS / "caution.json").write_text(json.dumps(kept, ensure_ascii=False) + "\n")
    (RESULTS / "caution.md").write_text(text + "\n![reward over KL](caution.png)\n")
    draw(runs, RESULTS / "caution.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sample-only", action="store_true", help="write no results")
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    WORK.mkdir(parents=True, exist_ok=True)
    files = [WORK / f"seed-{seed}.json" for seed in arguments.seeds]
    for seed, file in zip(arguments.seeds, files, strict=True):
        if file.exists() and len(json.loads(file.read_text())) == len(PLAN):
            continue
        with workers.pool(1) as pool:  # an engine ends with its process
            pool.submit(steer, seed, file).result()
    if arguments.sample_only:
        return
    write(arguments.seeds)


if __name__ == "__main__":
    main()
