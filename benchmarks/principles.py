"""Principles in words on a real base: what they move, at which KL, and what they cost.

    python benchmarks/principles.py [BASE]

SmolLM2-135M-Instruct answers 32 everyday prompts twice at temperature 1, steered by a principle
that asks for warmth, by one that asks for a short answer, or by a negative prompt, at several β.
Each is compared with the unguided base, and with the same text as an ordinary system message,
prompt by prompt. Rewards are VADER's compound sentiment and brevity, both from −1 to 1. The price
is the time of the same greedy tokens with no, one and two principles, in turns. Writes
benchmarks/results/principles.{json,md,png}; a later run reuses the results in it. Takes about ten
minutes on one core.
"""

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1")

import numpy as np
from scipy import stats
from tqdm import tqdm

from trimtab.adapters.vllm.offline import Sampler
from trimtab.params import GuidanceParams
from trimtab.principles import insertion
from trimtab.sampling import Completion
from trimtab_lab.arena.task import REAL_ENGINE
from trimtab_lab.worlds import WORLDS
from trimtab_models.bases import base_path
from trimtab_models.drawing import SHADES, Chart
from trimtab_models.smollm2 import rewards

RESULTS = Path(__file__).parent / "results"
PROMPTS, ANSWERS, SEED = 32, 2, 0
WARM = "You are warm and cheerful. You answer with joy and praise."
SHORT = "You answer with one short sentence."
RUDE = "You are gloomy and rude. You complain about everything."
TEXTS = {"warm": WARM, "short": SHORT, "not rude": RUDE}
REWARD = {"warm": "kindness", "short": "brevity", "not rude": "kindness"}
BETAS = (1.0, 2.0, 3.0)
FUNCTION = {"path": "trimtab_models.smollm2.rewards:brevity", "family": "function", "reads": "pair"}
ROWS, TOKENS, REPEATS = (1, 8), 16, 5


def guidance(label: str, beta: float) -> GuidanceParams:
    """The guidance of a run."""
    if label == "not rude":
        return GuidanceParams(negative_prompt=TEXTS[label], beta=beta)
    return GuidanceParams.parse({"principles": [{"text": TEXTS[label], "weight": 1}], "beta": beta})


def settings() -> dict[str, tuple[str, float | None]]:
    """Label → text, and β; None: as a system message."""
    made: dict[str, tuple[str, float | None]] = {"base": ("warm", 0.0)}
    for label in TEXTS:
        made |= {f"{label} {beta:g}": (label, beta) for beta in BETAS}
    return made | {f"{label} system": (label, None) for label in TEXTS if label != "not rude"}


def prompts(sampler: Sampler, text: str | None = None) -> list[list[int]]:
    """Token ids of the prompts, with a text as their system message if there is one."""
    world = WORLDS["everyday"]
    made = []
    for prompt in world.prompts("test", PROMPTS, SEED):
        ids = sampler.tokenizer(prompt, add_special_tokens=False).input_ids
        at, more = (0, []) if text is None else insertion(sampler.tokenizer, text, ids)
        made.append([*ids[:at], *more, *ids[at:]])
    return made


def run(sampler: Sampler, label: str, beta: float | None) -> dict[str, Any]:
    """KL and both rewards of every answer, each [prompts][answers]."""
    world = WORLDS["everyday"]
    params = None if beta is None else guidance(label, beta)
    answers = sampler.sample(
        prompts(sampler, TEXTS[label] if beta is None else None),
        ANSWERS,
        seed=SEED,
        temperature=1.0,
        max_tokens=world.max_tokens,
        params=params,
    )

    def text(one: Completion) -> str:
        return str(sampler.tokenizer.decode(one.token_ids, skip_special_tokens=True))

    return {
        "kl": [[one.kl for one in group] for group in answers],
        **{
            name: [[getattr(rewards, name)("", text(one)) for one in group] for group in answers]
            for name in ("kindness", "brevity")
        },
    }


def price(sampler: Sampler) -> dict[str, list[list[float]]]:
    """Seconds of a greedy token, by rows: [repeats][no, one, two principles]."""
    none = GuidanceParams.parse({"negative_prompt": WARM, "beta": 0})
    one, pair = guidance("warm", 1.0), [{"text": t, "weight": 1} for t in (WARM, SHORT)]
    two = GuidanceParams.parse({"principles": pair})
    seconds: dict[str, list[list[float]]] = {}
    for rows in tqdm(ROWS, desc="price"):
        some = prompts(sampler)[:rows]
        repeats = []
        for _ in range(1 + REPEATS):
            times = []
            for params in (none, one, two):
                begun = time.perf_counter()
                options = {"seed": SEED, "temperature": 0.0, "max_tokens": TOKENS}
                answers = sampler.sample(some, 1, params=params, **options)
                spent = time.perf_counter() - begun
                times.append(spent / max(len(group[0].token_ids) for group in answers))
            repeats.append(times)
        seconds[str(rows)] = repeats[1:]
    return seconds


def mean_se(values: Any) -> str:
    by_prompt = np.mean(values, 1)
    return f"{by_prompt.mean():.2f} ± {stats.sem(by_prompt):.2f}"


def draw(runs: dict[str, Any], path: Path) -> None:
    """Reward over KL, from the base to the largest β."""
    chart = Chart(2, height=3.4)
    for panel, reward in zip(chart.panels, ("kindness", "brevity"), strict=True):
        for shade, label in zip(SHADES, TEXTS, strict=False):
            if REWARD[label] != reward:
                continue
            some = [runs["base"], *(runs[f"{label} {beta:g}"] for beta in BETAS)]
            points = [(np.mean(one["kl"]), np.mean(one[reward], 1)) for one in some]
            kl, rewarded = zip(*points, strict=True)
            means, errors = [one.mean() for one in rewarded], [stats.sem(one) for one in rewarded]
            panel.line(label, kl, means, errors, shade=shade)
            if f"{label} system" in runs:
                panel.level(f"{label}, as system", np.mean(runs[f"{label} system"][reward]))
        panel.axes.set(xlabel="KL to the base, nats", ylabel=f"{reward} ± s.e.")
    chart.save(path)


def report(kept: dict[str, Any]) -> str:
    runs = kept["runs"]
    lines = [
        f"SmolLM2-135M-Instruct in bfloat16, {PROMPTS} test prompts of *everyday* at temperature "
        f"1, {ANSWERS} answers to each of at most {WORLDS['everyday'].max_tokens} tokens, seed "
        f"{SEED}, default k and mass, the same random numbers in all rows. Means ± standard errors "
        "over prompts; *p* of the paired difference from the base, both sides. *System* is the "
        "text as an ordinary system message, without guidance.",
        "",
        "![Reward over KL](principles.png)",
        "",
        *(f'- *{label}*: "{text}"' for label, text in TEXTS.items()),
        "",
        "*Warm* and *short* are principles of weight 1; *not rude* is a negative prompt. *Warm* "
        "and *not rude* are judged by VADER's compound sentiment, *short* by brevity.",
        "",
        "| text | β | KL, nats | reward | over the base | p | the base's |",
        "|---" * 7 + "|",
    ]
    for name, (label, beta) in settings().items():
        if name == "base":
            continue
        own, base = (runs[one][REWARD[label]] for one in (name, "base"))
        gain = np.mean(own, 1) - np.mean(base, 1)
        p = stats.ttest_1samp(gain, 0).pvalue
        kl = "–" if beta is None else mean_se(runs[name]["kl"])
        shown = "system" if beta is None else f"{beta:g}"
        figures = [mean_se(own), mean_se(gain[:, None]), f"{p:.1g}", mean_se(base)]
        lines.append(f"| {label} | {shown} | {kl} | " + " | ".join(figures) + " |")
    lines += [
        "",
        f"Time of a step of {TOKENS} greedy tokens, prompts included, as a ratio to the same "
        f"without principles: median of {REPEATS} paired repeats (lowest to highest), one core of "
        "a shared machine.",
        "",
        "| rows | seconds a token without | one principle | two principles |",
        "|---|---|---|---|",
    ]
    for rows, repeats in kept["price"].items():
        table = np.array(repeats)
        ratios = table[:, 1:] / table[:, :1]
        cells = [f"{np.median(r):.2f} ({r.min():.2f} to {r.max():.2f})" for r in ratios.T]
        lines.append(f"| {rows} | {np.median(table[:, 0]):.4f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", nargs="?", default="smollm2")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "principles.json"
    about = {"vllm": version("vllm-cpu"), "seed": SEED, "texts": TEXTS}
    kept = json.loads(file.read_text()) if file.exists() else {}
    kept = kept if kept.get("about") == about else {"about": about, "runs": {}}
    sampler = None
    for name, (label, beta) in tqdm(settings().items()):
        if name not in kept["runs"]:
            base = base_path(arguments.base)
            sampler = sampler or Sampler(base, {"function": FUNCTION}, **REAL_ENGINE)
            kept["runs"][name] = run(sampler, label, beta)
            file.write_text(json.dumps(kept) + "\n")
    if "price" not in kept:
        base = base_path(arguments.base)
        sampler = sampler or Sampler(base, {"function": FUNCTION}, **REAL_ENGINE)
        kept["price"] = price(sampler)
        file.write_text(json.dumps(kept) + "\n")
    (arguments.out / "principles.md").write_text(report(kept))
    draw(kept["runs"], arguments.out / "principles.png")
    print(report(kept))


if __name__ == "__main__":
    main()
