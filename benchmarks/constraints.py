"""Floors, ceilings and utilities: do they hold for the guided policy, and at what price?

    python benchmarks/constraints.py [--only tiny|demo]

*tiny*: every completion is enumerated. The guide, with exact return distributions of three returns
that depend on each other, is compared with the exact constrained optimum: by how much it misses a
bound, and how much more KL it costs than the cheapest policy with the same means.

*demo*: the reviews world. Return distributions of brevity and formality are trained on
2,560 answers of the base; 200 test prompts are answered at temperature 1, with the same random
numbers in all settings. Writes benchmarks/results/constraints.{json,md,png}. An interrupted
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
from trimtab_lab.arena.stats import at_kl, paired
from trimtab_models import data, demo, networks, pretrained
from trimtab_models.data.encoding import cut
from trimtab_models.demo import rollouts
from trimtab_models.drawing import INK, SHADES, Chart

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
WORK = ROOT / ".work" / "constraints"
TRAIN_PROMPTS, COMPLETIONS = 640, 4
PROMPTS, MAX_TOKENS, SEED = 200, 96, 0
NAMES = ("brevity", "formality")
TRAINING: dict[str, Any] = {"layers": 2, "epochs": 2, "save_steps": 20}
TRAINING |= {"options.support": [-1, 1], "options.bins": 21}
RIVAL = {"formality": 1.0}
BETAS, FLOORS, WEIGHTS = (0.0, 2.0, 4.0), (0.25, 0.5), (0.5, 1.0, 2.0)
ONE = {"scorers": {"brevity": 1.0}}
CASES: dict[str, dict[str, Any]] = {
    "base": {**ONE, "beta": 0.0},
    **{f"formality, β {b:g}": {"scorers": RIVAL, "beta": b} for b in BETAS[1:]},
    **{
        f"floor {f:g}, β {b:g}": {"floors": {"brevity": f}, "scorers": RIVAL, "beta": b}
        for f in FLOORS
        for b in BETAS
    },
    "ceiling 0.3, β 4": {**ONE, "ceilings": {"brevity": 0.3}, "beta": 4.0},
    "floor and ceiling, β 4": {
        "floors": {"brevity": 0.4},
        "ceilings": {"formality": 0.4},
        "scorers": RIVAL,
        "beta": 4.0,
    },
    **{
        f"floor 0.5, {b:g} nats": {"floors": {"brevity": 0.5}, "scorers": RIVAL, "kl_budget": b}
        for b in (0.25, 2.0)
    },
    **{f"weight {w:g}, β 2": {"scorers": {**RIVAL, "brevity": w}, "beta": 2.0} for w in WEIGHTS},
    **{f"mean, β {b:g}": {**ONE, "beta": b} for b in (1.0, 2.0, 4.0)},
    **{
        f"{kind} {x:g}, β {b:g}": {**ONE, "beta": b, "utility": {"brevity": {kind: x}}}
        for kind, x, b in (("at_least", 0.5, 2.0), ("cvar", 0.2, 0.5), ("target", 0.5, 4.0))
    },
}


# The demo.


def trained() -> dict[str, Path]:
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
            Row(
                processor.params,
                n,
                self.tokenizer.eos_token_id,
                record_key=str(i),
                max_tokens=MAX_TOKENS,
            )
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
        made: dict[str, list[Any]] = {"kl": [], "tokens": []}
        wholes = []
        answers = output[:, batch.input_ids.shape[1] :].tolist()
        for row, length, padded in zip(processor.rows, lengths, answers, strict=True):
            ids = cut(padded, self.tokenizer.eos_token_id)
            own = [s for at, s in row.steps.items() if length <= at < length + len(ids)]
            made["kl"].append(sum(step.kl for step in own))
            plans = [step.plan for step in own if step.plan and step.plan.duals]
            duals = {
                name: np.mean([p.duals[name] for p in plans] or [0]) for name in params.bounded
            }
            luck = own[-1].plan.after_token(ids[-1]).luck if own and own[-1].plan else {}
            for name in params.bounded:
                made.setdefault(f"dual of {name}", []).append(duals[name])
                made.setdefault(f"luck of {name}", []).append(luck.get(name, 0.0))
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
    """Every case of the demo, one answer to each prompt."""
    file = WORK / "runs.json"
    runs: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    paths = trained()
    texts = [demo.chat(prompt) for prompt in demo.prompts("test", PROMPTS, seed=5)]
    decoder = Decoder(paths)
    for name in tqdm([name for name in CASES if name not in runs], unit="case"):
        runs[name] = decoder.run(texts, CASES[name])
        file.write_text(json.dumps(runs))
    return {name: runs[name] for name in CASES}


# Reports.


def report(runs: dict[str, Any]) -> list[str]:
    out = [
        f"*reviews*, {PROMPTS} test prompts, an answer each at temperature 1, seed {SEED}; means ± "
        "standard errors over prompts. Rewards are in [−1, 1]. *By its scorer*: the mean return "
        "that the scorer sees in whole answers, which the bounds are about. *Without luck*: the "
        "same less what the drawn tokens added (its mean is 0, so it only takes noise away). "
        "*Off*: that less the bound, in % of the bound. *Exact*: the reward.",
        "",
        "| setting | bound | by its scorer | without luck | off | exact | mean dual | formality "
        "| KL, nats |",
        "|---" * 9 + "|",
    ]
    for case, run in runs.items():
        for i, (kind, name, bound) in enumerate(bounds_of(case)):
            own = np.array(run[f"{name} by its scorer"])
            sure = own - np.array(run[f"luck of {name}"])
            cells = [
                case if i == 0 else "",
                f"{name} {'≥' if kind == 'floors' else '≤'} {bound:g}",
                mean_se(own),
                mean_se(sure),
                f"{100 * (sure.mean() - bound) / bound:+.1f} %",
                mean_se(run[name]),
                f"{np.mean(run[f'dual of {name}']):.2f}",
                mean_se(run["formality"]),
                mean_se(run["kl"], 2),
            ]
            out.append("| " + " | ".join(cells) + " |")
    out += [
        "",
        "Without bounds:",
        "",
        "| setting | brevity, by its scorer | exact | its worst fifth | P(brevity ≥ 0.5) "
        "| −\\|brevity − 0.5\\| | formality | KL, nats |",
        "|---" * 8 + "|",
    ]
    for case, run in runs.items():
        if bounds_of(case):
            continue
        values = np.array(run["brevity"])
        cells = [
            case,
            mean_se(run["brevity by its scorer"]),
            mean_se(values),
            f"{worst(values):.3f}",
            mean_se(values >= 0.5 - 1e-9),
            mean_se(-np.abs(values - 0.5)),
            mean_se(run["formality"]),
            mean_se(run["kl"], 2),
        ]
        out.append("| " + " | ".join(cells) + " |")
    return [*out, "", *report_utilities(runs), "", *report_price(runs)]


def mean_se(values: Any, digits: int = 3) -> str:
    values = np.asarray(values, dtype=float)
    return f"{values.mean():.{digits}f} ± {stats.sem(values):.{digits}f}"


def bounds_of(case: str) -> list[tuple[str, str, float]]:
    """(kind, scorer, bound) of a case."""
    fields = CASES[case]
    return [
        (kind, name, bound)
        for kind in ("floors", "ceilings")
        for name, bound in fields.get(kind, {}).items()
    ]


def worst(values: np.ndarray, share: float = 0.2) -> float:
    """Mean of the worst share."""
    return float(np.sort(values)[: round(share * len(values))].mean())


def report_utilities(runs: dict[str, Any]) -> list[str]:
    """Utilities of brevity beside the mean at the same KL, paired by prompt."""
    out = [
        "Utilities beside the mean at the same KL (between its settings, prompt by prompt; paired, "
        "Student's p, one-sided):",
        "",
        "| setting | measure | utility | the mean at its KL | difference | p |",
        "|---" * 6 + "|",
    ]
    measures: dict[str, tuple[str, Any]] = {
        "at_least 0.5, β 2": ("brevity ≥ 0.5", lambda r: (r >= 0.5 - 1e-9).astype(float)),
        "cvar 0.2, β 0.5": ("min(brevity, 0)", lambda r: np.minimum(r, 0)),
        "target 0.5, β 4": ("−\\|brevity − 0.5\\|", lambda r: -np.abs(r - 0.5)),
    }
    means = [run for case, run in runs.items() if case.startswith(("base", "mean,"))]
    for case, (label, measure) in measures.items():
        run = runs[case]
        own = measure(np.array(run["brevity"]))
        points = [(measure(np.array(one["brevity"])), np.array(one["kl"])) for one in means]
        other = at_kl(points, float(np.mean(run["kl"])))
        if other is None:
            out.append(f"| {case} | {label} | {mean_se(own)} | beyond its settings | | |")
            continue
        p = paired(own, other, read=True).p
        out.append(
            f"| {case} | {label} | {mean_se(own)} | {other.mean():.3f} | {mean_se(own - other)} "
            f"| {p:.2g} |"
        )
    return out


def report_price(runs: dict[str, Any]) -> list[str]:
    """What a floor costs beside fixed weights."""
    cases = ["formality, β 2", *(f"weight {w:g}, β 2" for w in WEIGHTS)]
    cases += [f"floor {f:g}, β 2" for f in FLOORS]
    return [
        "A floor on brevity beside formality at β = 2, and fixed weights of brevity:",
        "",
        "| setting | brevity | formality | KL, nats | 2·formality − KL |",
        "|---" * 5 + "|",
        *(
            f"| {case} | {mean_se(runs[case]['brevity'])} | {mean_se(runs[case]['formality'])} "
            f"| {mean_se(runs[case]['kl'], 2)} | {mean_se(gain(runs[case]))} |"
            for case in cases
        ),
    ]


def gain(run: dict[str, Any]) -> np.ndarray:
    """2·formality − KL of each answer: what β = 2 maximises, beside a bound."""
    return 2 * np.array(run["formality"]) - np.array(run["kl"])


def draw(runs: dict[str, Any], path: Path) -> None:
    chart = Chart(2, height=3.4)
    left, right = chart.panels
    for floor, shade in zip(FLOORS, SHADES, strict=False):
        own = [runs[f"floor {floor:g}, β {b:g}"]["brevity by its scorer"] for b in BETAS]
        left.line(f"floor {floor:g}", BETAS, np.mean(own, 1), stats.sem(own, axis=1), shade=shade)
        left.axes.axhline(floor, color=shade, linewidth=0.8, linestyle=":")
    names = ["base", *(f"formality, β {b:g}" for b in BETAS[1:])]
    own = [runs[name]["brevity by its scorer"] for name in names]
    left.line("no floor", BETAS, np.mean(own, 1), stats.sem(own, axis=1), shade=INK)
    left.axes.set(xlabel="β of formality", ylabel="mean brevity ± s.e., by its scorer")
    fixed = ["formality, β 2", *(f"weight {w:g}, β 2" for w in WEIGHTS)]
    floors = [f"floor {f:g}, β 2" for f in FLOORS]
    for label, cases, shade in (
        ("fixed weights", fixed, SHADES[2]),
        ("floors", floors, SHADES[0]),
    ):
        x = [np.mean(runs[name]["brevity"]) for name in cases]
        gains = [gain(runs[name]) for name in cases]
        right.line(label, x, np.mean(gains, 1), stats.sem(gains, axis=1), shade=shade)
    right.axes.set(xlabel="mean brevity", ylabel="2 · formality − KL, ± s.e.")
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
        lines += [*report(kept["demo"]), ""]
        draw(kept["demo"], arguments.out / "constraints.png")
    (arguments.out / "constraints.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
