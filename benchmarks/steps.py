"""Rewards of steps against the same data with the return only at the end.

    python benchmarks/steps.py [--seeds 0 1 2] [--train-only]

The demo's base writes reviews. Each sentence has a reward, the sum of the polarities of its opinion
words, which arrives where the sentence ends; the return is their sum. The same answers of the base
train, on the same network and with the same seeds,

    at the end   td-lambda, which is shown the return alone
    steps        td-lambda, which is shown the sentences' rewards as `spans`: the return to go
    gains        gains with discount 1, from the same spans: the whole return, in two parts

Each scorer steers the same test prompts, one answer each. Returns are compared at one KL, paired by
prompt. A seed is that of a training and of the steered answers; the base's answers are the same.
Writes benchmarks/results/steps.{json,md,png}. An interrupted run resumes from .work/steps. Takes
about ten minutes on one core.
"""

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from tqdm import tqdm

from trimtab.params import GuidanceParams
from trimtab_lab.arena import workers
from trimtab_lab.arena.stats import at_kl, paired
from trimtab_models import data, demo, networks, pretrained
from trimtab_models.demo import rollouts
from trimtab_models.demo.oracles import words_of
from trimtab_models.demo.words import POLARITY
from trimtab_models.drawing import SHADES, Chart

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
WORK = ROOT / ".work" / "steps"
TRAIN_PROMPTS, COMPLETIONS = 384, 4
PROMPTS, MAX_TOKENS, KL = 200, 96, 1.0
EPOCHS = 4
ENGINE = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 256}
CANDIDATES: dict[str, Any] = {"k": 32, "mass": 0.99, "tail": "mean"}
BETAS = (0.3, 0.6, 1.0, 1.5)
"""β of the steered answers; a setting above `KL` is the last one."""
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "at the end": ("td-lambda", {"data": "whole"}),
    "steps": ("td-lambda", {"data": "steps"}),
    "gains": ("gains", {"data": "steps", "options": {"discount": 1.0, "decay": 0.95}}),
}


def polarity(text: str) -> float:
    """The sum of the polarities of a text's opinion words."""
    return float(sum(POLARITY.get(word, 0) for word in words_of(text)))


def spans(text: str) -> list[dict[str, Any]]:
    """The rewards of a text's sentences; what follows the last full stop is one too."""
    return [
        {"start": one.start(), "end": one.end(), "value": polarity(one.group())}
        for one in re.finditer(r"[^.]*\.|[^.]+$", text)
    ]


def answers() -> None:
    """Write the base's answers twice: with the return alone, and with the rewards of sentences."""
    if (WORK / "steps.jsonl").exists():
        return
    tokenizer = pretrained.tokenizer(demo.base())
    model = networks.build("language", demo.base(), dtype=torch.float32)
    prompts = rollouts.training_prompts(tokenizer, TRAIN_PROMPTS, 0) * COMPLETIONS
    records = rollouts.sample(model, tokenizer, prompts, 0)
    records = [one for one in records if one["completion"].strip()]
    whole = [{**one, "reward": polarity(one["completion"])} for one in records]
    steps = [{**one, "spans": spans(one["completion"])} for one in records]
    sums = [sum(span["value"] for span in one["spans"]) for one in steps]
    assert np.allclose(sums, [one["reward"] for one in whole])
    data.write(WORK / "whole.jsonl", whole)
    data.write(WORK / "steps.jsonl", steps)


def train(arm: str, seed: int) -> None:
    """Train a scorer as `trimtab train` does."""
    from trimtab_models.training.config import load
    from trimtab_models.training.run import run

    objective, settings = ARMS[arm]
    out = WORK / f"{arm.replace(' ', '-')}-{seed}"
    if (out / "config.json").exists():
        return
    fields = {**settings, "data": str(WORK / f"{settings['data']}.jsonl"), "out": str(out)}
    fields |= {"validation": None, "epochs": EPOCHS, "seed": seed, "trainer.disable_tqdm": True}
    sets = [f"{key}={json.dumps(value)}" for key, value in fields.items()]
    run(load(ROOT / "configs" / "demo.yaml", sets, objective))


def steer(seeds: list[int]) -> None:
    """Write returns and KL of each scorer and setting on the test prompts."""
    from trimtab.adapters.vllm.offline import Sampler

    names = {f"{arm.replace(' ', '-')}-{seed}": seed for seed in seeds for arm in ARMS}
    missing = {n: seed for n, seed in names.items() if not (WORK / f"{n}.json").exists()}
    if not missing:
        return
    sampler = Sampler(str(demo.base()), {name: str(WORK / name) for name in missing}, **ENGINE)
    texts = [demo.chat(prompt) for prompt in demo.prompts("test", PROMPTS, seed=5)]
    ids = [sampler.tokenizer(text, add_special_tokens=False).input_ids for text in texts]

    def measured(name: str, seed: int, beta: float) -> dict[str, Any]:
        params = GuidanceParams(scorers={name: 1.0}, beta=beta, **CANDIDATES)
        groups = sampler.sample(
            ids, 1, seed=seed, temperature=1.0, max_tokens=MAX_TOKENS, params=params
        )
        drawn = [one for [one] in groups]
        texts = [sampler.tokenizer.decode(one.token_ids, skip_special_tokens=True) for one in drawn]
        return {
            "beta": beta,
            "return": [polarity(text) for text in texts],
            "kl": [round(one.kl, 5) for one in drawn],
            "tokens": [len(one.token_ids) for one in drawn],
        }

    base: dict[int, dict[str, Any]] = {}  # by seed; β = 0 is the base, whatever the scorer
    for name, seed in tqdm(missing.items(), unit="scorer"):
        if seed not in base:
            base[seed] = measured(name, seed, 0.0)
        points = [base[seed]]
        for beta in BETAS:
            points.append(measured(name, seed, beta))
            if np.mean(points[-1]["kl"]) > KL:
                break
        (WORK / f"{name}.json").write_text(json.dumps(points))


def report(seeds: list[int], runs: dict[str, list[list[dict[str, Any]]]]) -> str:
    """The results of all seeds, as text."""
    at: dict[str, np.ndarray] = {}
    for arm, of in runs.items():
        each = [
            at_kl([(np.array(p["return"]), np.array(p["kl"])) for p in points], KL) for points in of
        ]
        at[arm] = np.array(each)  # [seeds, prompts]
    base = np.mean([points[0]["return"] for points in runs["steps"]], 0)
    lines = [
        "# Rewards of steps, or the return at the end",
        "",
        f"Reviews of the demo: the return is the sum of the polarities of an answer's opinion "
        f"words, and each sentence's part arrives at its end. {TRAIN_PROMPTS * COMPLETIONS:,} "
        f"answers of the base to {TRAIN_PROMPTS} prompts train each scorer (two layers, {EPOCHS} "
        f"passes, λ 0.95). {PROMPTS} test prompts, one answer each; seeds of training and steering "
        f"{', '.join(map(str, seeds))}. Returns at {KL:g} nat, linear in √KL between settings; "
        f"mean over seeds ± standard error over prompts. The base has {base.mean():.3f} ± "
        f"{stats.sem(base):.3f}.",
        "",
        "| scorer | trained on | return | each seed | β that reaches it |",
        "|---|---|---|---|---|",
    ]
    for arm, values in at.items():
        mean = values.mean(0)
        each = ", ".join(f"{one.mean():.3f}" for one in values)
        betas = sorted({f"{points[-1]['beta']:g}" for points in runs[arm]})
        objective, settings = ARMS[arm]
        shown = "the return" if settings["data"] == "whole" else "the spans"
        lines.append(
            f"| {arm}: `{objective}` | {shown} | {mean.mean():.3f} ± {stats.sem(mean):.3f} | "
            f"{each} | up to {', '.join(betas)} |"
        )
    lines += [
        "",
        "Differences, paired by prompt, of the means over seeds; 95 % by the bootstrap over "
        "prompts, Student's p (one-sided):",
        "",
        "| better | worse | difference | 95 % | p |",
        "|---|---|---|---|---|",
    ]
    for better, worse in (("steps", "at the end"), ("gains", "at the end"), ("steps", "gains")):
        gap = paired(at[better].mean(0), at[worse].mean(0), read=True)
        error = stats.sem(at[better].mean(0) - at[worse].mean(0))
        lines.append(
            f"| {better} | {worse} | {gap.difference:+.3f} ± {error:.3f} | {gap.low:+.3f} to "
            f"{gap.high:+.3f} | {gap.p:.1e} |"
        )
    return "\n".join(lines) + "\n\n![Return against KL](steps.png)\n"


def draw(runs: dict[str, list[list[dict[str, Any]]]], path: Path) -> None:
    chart = Chart(1, height=4.6)
    [panel] = chart.panels
    for shade, (arm, of) in zip(SHADES, runs.items(), strict=False):
        settings = range(min(map(len, of)))
        kl = [np.mean([points[i]["kl"] for points in of]) for i in settings]
        means = [np.mean([points[i]["return"] for points in of], 0) for i in settings]
        errors = [stats.sem(one) for one in means]
        panel.line(arm, kl, [one.mean() for one in means], errors, shade=shade)
    panel.axes.set(xlabel="KL to the base, nats per answer", ylabel="mean return ± s.e.")
    panel.fit()
    chart.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train-only", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    WORK.mkdir(parents=True, exist_ok=True)
    answers()
    for seed in tqdm(arguments.seeds, desc="training", unit="seed"):
        for arm in ARMS:
            train(arm, seed)
    if arguments.train_only:
        return
    with workers.pool(1) as pool:  # an engine ends with its process
        pool.submit(steer, arguments.seeds).result()
    runs = {
        arm: [
            json.loads((WORK / f"{arm.replace(' ', '-')}-{seed}.json").read_text())
            for seed in arguments.seeds
        ]
        for arm in ARMS
    }
    text = report(arguments.seeds, runs)
    print(text)
    (RESULTS / "steps.json").write_text(json.dumps(runs) + "\n")
    (RESULTS / "steps.md").write_text(text)
    draw(runs, RESULTS / "steps.png")


if __name__ == "__main__":
    main()
