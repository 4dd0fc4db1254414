"""Floors, ceilings and utilities: do they hold for the guided policy, and at what price?

    python benchmarks/constraints.py [--only tiny|demo]

*tiny*: every completion is enumerated. The guide, with exact return distributions of three returns
that depend on each other, is compared with the exact constrained optimum: by how much it misses a
bound, and how much more KL it costs than the cheapest policy with the same means.

*demo*: the reviews world. Return distributions of sentiment, formality and brevity are trained on
3,072 answers of the base; 200 test prompts are answered twice at temperature 1, with the same
random numbers in all settings. Writes benchmarks/results/constraints.{json,md,png}. An interrupted
run resumes from .work/constraints.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import constraints_tiny
import numpy as np
import torch
from scipy import stats
from tqdm import tqdm
from transformers import LogitsProcessorList

from trimtab.adapters.transformers import TransformersGuidance
from trimtab.config import GuidanceConfig
from trimtab.guide import Guide
from trimtab.loading import load_scorers
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab_lab.arena.stats import at_kl
from trimtab_models import data, demo, networks, pretrained
from trimtab_models.data.encoding import cut
from trimtab_models.demo import rollouts
from trimtab_models.drawing import INK, SHADES, Chart

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
WORK = ROOT / ".work" / "constraints"
TRAIN_PROMPTS, COMPLETIONS = 768, 4
PROMPTS, ANSWERS, MAX_TOKENS, SEED = 200, 2, 96, 0
NAMES = ("sentiment", "formality", "brevity")
TRAINING = {"layers": 2, "epochs": 2, "options.support": [-1, 1], "options.bins": 21}
RIVAL = {"formality": 1.0}
BETAS = (1.0, 2.0, 4.0)
FLOORS = (0.25, 0.5)
CASES: dict[str, dict[str, Any]] = {
    "base": {"beta": 0.0, "scorers": {"sentiment": 1.0}},
    **{f"formality, β {b:g}": {"scorers": RIVAL, "beta": b} for b in BETAS},
    **{
        f"floor {f:g}, β {b:g}": {"floors": {"sentiment": f}, "scorers": RIVAL, "beta": b}
        for f in FLOORS
        for b in (0.0, *BETAS)
    },
    **{
        f"ceiling 0.3, β {b:g}": {
            "ceilings": {"sentiment": 0.3},
            "scorers": {"sentiment": 1.0},
            "beta": b,
        }
        for b in (2.0, 4.0)
    },
    "two floors, a ceiling, β 2": {
        "floors": {"sentiment": 0.4, "brevity": 0.3},
        "ceilings": {"formality": 0.4},
        "scorers": RIVAL,
        "beta": 2.0,
    },
    **{
        f"floor 0.5, {b:g} nats": {
            "floors": {"sentiment": 0.5},
            "scorers": RIVAL,
            "kl_budget": b,
        }
        for b in (0.25, 2.0, 4.0)
    },
    **{
        f"weight {w:g}, β 2": {"scorers": {**RIVAL, "sentiment": w}, "beta": 2.0}
        for w in (0.5, 1.0, 2.0, 4.0)
    },
    **{f"mean, β {b:g}": {"scorers": {"sentiment": 1.0}, "beta": b} for b in (0.5, 1.0, 2.0, 4.0)},
    **{
        f"{kind} {x:g}, β {b:g}": {
            "scorers": {"sentiment": 1.0},
            "beta": b,
            "utility": {"sentiment": {kind: x}},
        }
        for kind, x, b in (("at_least", 0.5, 1.5), ("at_least", 0.5, 3.0), ("cvar", 0.2, 0.3))
    },
    **{
        f"target {x:g}, β 4": {
            "scorers": {"brevity": 1.0},
            "beta": 4.0,
            "utility": {"brevity": {"target": x}},
        }
        for x in (-0.5, 0.5)
    },
}


# The demo.


def prepare() -> dict[str, Path]:
    """The scorers, trained on the base's answers."""
    from trimtab_models.training.config import load
    from trimtab_models.training.run import run

    raw = WORK / "rollouts.jsonl"
    if not raw.exists():
        tokenizer = pretrained.tokenizer(demo.base())
        model = networks.build("language", demo.base(), dtype=torch.float32)
        prompts = rollouts.training_prompts(tokenizer, TRAIN_PROMPTS, SEED) * COMPLETIONS
        data.write(raw, rollouts.sample(model, tokenizer, prompts, SEED))
    for name in NAMES:
        if (WORK / name / "config.json").exists():
            continue
        file = WORK / f"{name}.jsonl"
        data.write(file, rollouts.label(data.read(raw), demo.rewards[name]))
        fields = {"base": "demo", "data": str(file), "out": str(WORK / name), "validation": 0.1}
        fields |= {"learning_rate": 1e-3, "batch_size": 64, "seed": SEED, **TRAINING}
        overrides = [f"{key}={json.dumps(value)}" for key, value in fields.items()]
        run(load(None, overrides, "distribution"))
    return {name: WORK / name for name in NAMES}


class Decoder:
    """The demo's base in transformers, with the scorers."""

    def __init__(self, scorers: dict[str, Path]) -> None:
        self.tokenizer = pretrained.tokenizer(demo.base())
        self.tokenizer.padding_side = "left"
        self.model = networks.build("language", demo.base(), dtype=torch.float32).eval()
        specs = {name: {"path": str(path)} for name, path in scorers.items()}
        config = GuidanceConfig.parse({"trimtab": {"scorers": specs}})
        size = len(self.tokenizer)
        served = load_scorers(
            config, max_length=512, vocab_size=size, tokenizer=self.tokenizer, model=None
        )
        self.guide = Guide(served)

    @torch.inference_mode()
    def run(self, texts: list[str], fields: dict[str, Any]) -> dict[str, Any]:
        """Answers at temperature 1: KL, exact rewards, the scorers' own means, duals."""
        torch.manual_seed(SEED)
        batch = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        params = GuidanceParams.parse(fields)
        processor = TransformersGuidance(
            self.guide, params, batch.attention_mask, max_new_tokens=MAX_TOKENS
        )
        lengths = batch.attention_mask.sum(1).tolist()
        processor.rows = [
            Row(processor.params, n, record_key=str(i), max_tokens=MAX_TOKENS)
            for i, n in enumerate(lengths)
        ]
        output = self.model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=MAX_TOKENS,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            logits_processor=LogitsProcessorList([processor]),
        )
        self.guide.catch_up()
        made: dict[str, list[Any]] = {"kl": [], "duals": [], "tokens": []}
        wholes = []
        answers = output[:, batch.input_ids.shape[1] :].tolist()
        for row, length, padded in zip(processor.rows, lengths, answers, strict=True):
            ids = cut(padded, self.tokenizer.eos_token_id)
            own = [s for at, s in row.steps.items() if length <= at < length + len(ids)]
            made["kl"].append(sum(step.kl for step in own))
            plans = [step.plan.duals for step in own if step.plan and step.plan.duals]
            bounded = sorted(params.bounded)
            made["duals"].append(
                [float(np.mean([p[name] for p in plans])) if plans else 0.0 for name in bounded]
            )
            made["tokens"].append(len(ids))
            wholes.append(np.concatenate((row.prefix[:length], np.array(ids))))
        words = [
            self.tokenizer.decode(whole[n:], skip_special_tokens=True)
            for whole, n in zip(wholes, lengths, strict=True)
        ]
        for name in NAMES:
            made[name] = [demo.rewards[name](t, w) for t, w in zip(texts, words, strict=True)]
            own = GuidanceParams(scorers={name: 1.0}, beta=0.0)
            rows = [Row(own, n, prefix=w[:-1]) for w, n in zip(wholes, lengths, strict=True)]
            means = self.guide.score_rows(name, rows, [whole[-1:] for whole in wholes])
            made[f"{name} by its scorer"] = means.tolist()
            self.guide.registry.forget([row.key for row in rows])
        self.guide.records.clear()
        self.guide.registry.forget([row.key for row in processor.rows])
        return {name: np.round(values, 5).tolist() for name, values in made.items()}


def run_demo() -> dict[str, Any]:
    """Every case of the demo, [PROMPTS · ANSWERS] answers each; prompt by prompt."""
    file = WORK / "runs.json"
    runs: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    scorers = prepare()
    texts = [demo.chat(prompt) for prompt in demo.prompts("test", PROMPTS, seed=5)]
    texts = [text for text in texts for _ in range(ANSWERS)]
    decoder = Decoder(scorers)
    for name in tqdm([name for name in CASES if name not in runs], unit="case"):
        runs[name] = decoder.run(texts, CASES[name])
        file.write_text(json.dumps(runs))
    return {name: runs[name] for name in CASES}


def by(values: list[float]) -> np.ndarray:
    """Means of each prompt, [prompts]."""
    return np.array(values).reshape(PROMPTS, ANSWERS).mean(1)


def mean_se(values: np.ndarray, digits: int = 3) -> str:
    return f"{values.mean():.{digits}f} ± {stats.sem(values):.{digits}f}"


def bounds_of(case: str) -> list[tuple[str, str, float]]:
    """(kind, scorer, bound) of a case."""
    fields = CASES[case]
    return [
        (kind, name, bound)
        for kind in ("floors", "ceilings")
        for name, bound in fields.get(kind, {}).items()
    ]


# Reports.


def report_demo(runs: dict[str, Any]) -> list[str]:
    out = [
        f"*reviews*, {PROMPTS} test prompts, {ANSWERS} answers each at temperature 1, seed {SEED}; "
        "means ± standard errors over prompts. Rewards are in [−1, 1]. *By its scorer*: the mean "
        "return that the scorer itself sees in whole answers, which is what the bounds are about; "
        "*exact*: the reward. *Off*: the scorer's mean less the bound, in % of the bound.",
        "",
        "| setting | bound | by its scorer | exact | off | mean dual | formality | KL, nats |",
        "|---" * 8 + "|",
    ]
    for case, run in runs.items():
        for i, (kind, name, bound) in enumerate(bounds_of(case)):
            own = by(run[f"{name} by its scorer"])
            at = sorted(one for _, one, _ in bounds_of(case)).index(name)
            dual = np.array(run["duals"])[:, at].mean()
            cells = [
                case if i == 0 else "",
                f"{name} {'≥' if kind == 'floors' else '≤'} {bound:g}",
                mean_se(own),
                mean_se(by(run[name])),
                f"{100 * (own.mean() - bound) / bound:+.1f} %",
                f"{dual:.2f}",
                mean_se(by(run["formality"])),
                mean_se(by(run["kl"]), 2),
            ]
            out.append("| " + " | ".join(cells) + " |")
    out += [
        "",
        "Without bounds:",
        "",
        "| setting | sentiment | formality | brevity | worst fifth of sentiment | P(sentiment ≥ "
        "0.5) | KL, nats |",
        "|---" * 7 + "|",
    ]
    for case, run in runs.items():
        if not bounds_of(case):
            sentiment = np.array(run["sentiment"])
            good = by([float(s >= 0.5 - 1e-9) for s in sentiment])
            cells = [case, *(mean_se(by(run[name])) for name in NAMES)]
            cells += [f"{worst(sentiment):.3f}", mean_se(good), mean_se(by(run["kl"]), 2)]
            out.append("| " + " | ".join(cells) + " |")
    return [*out, "", *report_utilities(runs), "", *report_price(runs)]


def worst(values: np.ndarray, share: float = 0.2) -> float:
    """Mean of the worst share."""
    return float(np.sort(values)[: round(share * len(values))].mean())


def report_utilities(runs: dict[str, Any]) -> list[str]:
    """Utilities of sentiment beside the mean at the same KL, paired by prompt."""
    out = [
        "Utilities beside the mean return at the same KL (between its settings, prompt by prompt; "
        "paired, Wilcoxon, one-sided):",
        "",
        "| setting | measure | utility | the mean at its KL | difference | p |",
        "|---" * 6 + "|",
    ]
    means = [run for case, run in runs.items() if case.startswith(("base", "mean,"))]
    measures = {
        "P(sentiment ≥ 0.5)": lambda run: by([float(s >= 0.5 - 1e-9) for s in run["sentiment"]])
    }
    for case, run in runs.items():
        for label, measure in measures.items():
            if not case.startswith("at_least"):
                continue
            kl = float(by(run["kl"]).mean())
            other = at_kl([(by(one["kl"]), measure(one)) for one in means], kl)
            if other is None:
                out.append(f"| {case} | {label} | {mean_se(measure(run))} | beyond | | |")
                continue
            d = measure(run) - other
            p = stats.wilcoxon(d, alternative="greater").pvalue if np.ptp(d) else 1.0
            out.append(
                f"| {case} | {label} | {mean_se(measure(run))} | {other.mean():.3f} | "
                f"{mean_se(d)} | {p:.3g} |"
            )
    for x in (-0.5, 0.5):
        run, base = runs[f"target {x:g}, β 4"], runs["base"]
        near, far = (-np.abs(np.array(one["brevity"]) - x) for one in (run, base))
        d = by(near.tolist()) - by(far.tolist())
        p = stats.wilcoxon(d, alternative="greater").pvalue
        out.append(
            f"| target {x:g}, β 4 | −\\|brevity − {x:g}\\| | {mean_se(by(near.tolist()))} | the "
            f"base: {by(far.tolist()).mean():.3f} | {mean_se(d)} | {p:.3g} |"
        )
    return out


def report_price(runs: dict[str, Any]) -> list[str]:
    """What a floor costs beside fixed weights with the same means."""
    return [
        "A floor on sentiment at β = 2 of formality, beside fixed weights of sentiment (β = 2):",
        "",
        "| setting | sentiment | formality | KL, nats | 2·formality − KL |",
        "|---" * 5 + "|",
        *(
            f"| {case} | {mean_se(by(run['sentiment']))} | {mean_se(by(run['formality']))} | "
            f"{mean_se(by(run['kl']), 2)} | "
            f"{mean_se(2 * by(run['formality']) - by(run['kl']))} |"
            for case, run in runs.items()
            if case in ("formality, β 2", "floor 0.25, β 2", "floor 0.5, β 2")
            or case.startswith("weight")
        ),
    ]


def draw(runs: dict[str, Any], path: Path) -> None:
    chart = Chart(2, height=3.4)
    left, right = chart.panels
    betas = (0.0, *BETAS)
    for floor, shade in zip(FLOORS, SHADES, strict=False):
        names = [f"floor {floor:g}, β {b:g}" for b in betas]
        own = [by(runs[name]["sentiment by its scorer"]) for name in names]
        left.line(
            f"floor {floor:g}",
            betas,
            [one.mean() for one in own],
            [stats.sem(one) for one in own],
            shade=shade,
        )
        left.axes.axhline(floor, color=shade, linewidth=0.8, linestyle=":")
    names = ["base", *(f"formality, β {b:g}" for b in BETAS)]
    own = [by(runs[name]["sentiment by its scorer"]) for name in names]
    left.line(
        "no floor", betas, [one.mean() for one in own], [stats.sem(one) for one in own], shade=INK
    )
    left.axes.set(xlabel="β of formality", ylabel="mean sentiment ± s.e., by its scorer")
    fixed = ["formality, β 2", *(f"weight {w:g}, β 2" for w in (0.5, 1.0, 2.0, 4.0))]
    for label, cases, shade in (
        ("fixed weights", fixed, SHADES[2]),
        ("floors", [f"floor {f:g}, β 2" for f in FLOORS], SHADES[0]),
    ):
        x = [by(runs[name]["sentiment"]).mean() for name in cases]
        gain = [2 * by(runs[name]["formality"]) - by(runs[name]["kl"]) for name in cases]
        right.line(label, x, [g.mean() for g in gain], [stats.sem(g) for g in gain], shade=shade)
    right.axes.set(xlabel="mean sentiment", ylabel="2 · formality − KL, ± s.e.")
    chart.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("tiny", "demo"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "constraints.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    if arguments.only != "demo":
        kept["tiny"] = constraints_tiny.run()
    if arguments.only != "tiny":
        kept["demo"] = run_demo()
    kept["seed"] = SEED
    file.write_text(json.dumps(kept) + "\n")
    lines = ["# Floors, ceilings and utilities", ""]
    if "tiny" in kept:
        lines += [*constraints_tiny.report(kept["tiny"]), ""]
    if "demo" in kept:
        lines += [*report_demo(kept["demo"]), ""]
        draw(kept["demo"], arguments.out / "constraints.png")
    (arguments.out / "constraints.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
