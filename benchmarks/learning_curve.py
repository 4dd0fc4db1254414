"""Learning curves on everyday: what scorers of the real base reach, by the number of rollouts.

    python benchmarks/learning_curve.py [--quick] [--work DIR] [--rollouts FILE] [--only METHOD ...]

The base is SmolLM2-135M-Instruct, the reward VADER's sentiment. 32 of the 432 training prompts are
held out; a scorer is trained on the first 250 to 4,000 answers to the others. For each it measures

    AUC        prefix-AUC on answers to the held-out prompts, as in a checkpoint's report
    known      correlation of score and reward, each less its prompt's mean, at parts of an answer
    foretold   the gain at 1 nat to first order: √2·E[R·S] / √E[Σ_t Var], S being the sum of each
               token's score less its candidates' mean, Var their variance under the base
    reward     at 1 nat, on the 48 test prompts of the arena, two answers each: each scorer runs at
               a strength that should spend `NATS`, and is read between it and the base, in √KL

Finished parts in DIR are kept: the same command resumes. FILE has records as `rollouts.jsonl` of
the arena of everyday, with "prefix_rewards"; it is sampled if it is missing. Writes
benchmarks/results/learning_curve.{json,md,png}.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot
from tqdm import tqdm

from trimtab.params import GuidanceParams
from trimtab_lab.arena.stats import at_kl, estimate
from trimtab_lab.arena.task import REWARD, load
from trimtab_models import base_weights, checkpoint, data, probe, report
from trimtab_models.features import States
from trimtab_models.rows import Rollout
from trimtab_models.training import initial, probes
from trimtab_models.training.config import TrainConfig
from trimtab_models.training.trainer import describe, train

RESULTS = Path(__file__).parent / "results"
WORK = Path(__file__).parents[1] / ".work" / "learning-curve"
SIZES, QUICK_SIZES = (250, 500, 1000, 2000, 4000), (100, 200)
METHODS: dict[str, dict[str, Any]] = {
    "gains": {"objective": "gains"},
    "td-lambda": {"objective": "td-lambda"},
    "distribution": {
        "objective": "distribution",
        "options": {"support": [-1.0, 1.0], "bins": 25},
    },
}
"""Name → settings of `trimtab train`; each trains a probe."""
HELD_OUT, TURNS, TESTS, ANSWERS = 32, 10, 48, 2
NATS = (1.2,)
TOP = GuidanceParams().k
PARTS = (10, 25, 50, 75)


def roll_out(path: Path, turns: int) -> None:
    """Answers of the base to all training prompts, one to each in a turn, with their rewards."""
    sampler, task = engine({})
    texts = task.world.prompts("train", 432, 0)
    prompts = [sampler.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    kindness = task.world.rewards["kindness"]
    records = []
    for turn in tqdm(range(turns), desc="rollouts", unit="turn"):
        groups = sampler.sample(prompts, 1, seed=100 + turn, temperature=1.0, max_tokens=48)
        for text, ids, [answer] in zip(texts, prompts, groups, strict=True):
            tokens = list(answer.token_ids)
            parts = [
                sampler.tokenizer.decode(tokens[: t + 1], skip_special_tokens=True)
                for t in range(len(tokens))
            ]
            records.append(
                {
                    "prompt": text,
                    "completion": parts[-1],
                    "prompt_token_ids": ids,
                    "completion_token_ids": tokens,
                    "rewards": {
                        n: reward(text, parts[-1]) for n, reward in task.world.rewards.items()
                    },
                    "prefix_rewards": [kindness(text, part) for part in parts],
                }
            )
    data.write(path, records)


def engine(scorers: dict[str, Path]) -> tuple[Any, Any]:
    """The base in vLLM with scorers, and the task."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from trimtab.adapters.vllm.offline import Sampler

    task = load("everyday")
    specs = {name: str(path) for name, path in scorers.items()} | (
        dict(task.scorers) if scorers else {}
    )
    return Sampler(str(task.world.base()), specs, **task.engine), task


def read(path: Path, turns: int) -> tuple[list[list[Rollout]], list[Rollout]]:
    """The answers to train on, by turns, and those to the held-out prompts."""
    items = [
        Rollout(
            record["prompt_token_ids"],
            record["completion_token_ids"],
            record["rewards"]["kindness"],
            prefix_rewards=record["prefix_rewards"],
        )
        for record in data.read(path)
    ]
    prompts = list(dict.fromkeys(tuple(item.prompt) for item in items))
    held = set(prompts[-HELD_OUT:])
    size = len(prompts)
    by_turn = [items[i * size : (i + 1) * size] for i in range(turns)]
    return by_turn, [item for item in items if tuple(item.prompt) in held]


def fit(name: str, items: list[Rollout], held: list[Rollout], states: States, out: Path) -> dict:
    """Train a probe, write its checkpoint, and say what it knows."""
    config = TrainConfig(**METHODS[name], base=str(states.base), data="-", out=out, probe={})
    objective = initial.objective(config)
    start = time.monotonic()
    torch.manual_seed(config.seed)
    trainer = train(
        objective,
        initial.network(config, objective),
        items,
        out.with_name(f"{out.name}.run"),
        pad_id=0,
        states=states,
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        disable_tqdm=True,
        **probes.DEFAULTS,
    )
    seconds = time.monotonic() - start
    model = initial.finish(trainer.model, objective, None, states).cpu()
    info = describe(objective, model, held, 0, "smollm2", states)
    checked = report.validate(model, info, held, None, 0, states=states)
    checkpoint.save(model, None, report.mark(info, checked), out)
    known = {k.percent: k.beyond_prompt and k.beyond_prompt.value for k in checked.known}
    auc = checked.prefix_auc.mean
    return {
        "seconds": seconds,
        "auc": [auc.mean, auc.standard_error],
        "known": {str(part): known[part] for part in PARTS},
        **foretold(model, info, held, states),
    }


@torch.inference_mode()
def foretold(model: Any, info: Any, held: list[Rollout], states: States) -> dict:
    """The gain at 1 nat to first order, its standard error, and the β of each KL in nats.

    At β → 0 a step spends β²/2·Var, and the reward rises by β·E[R·S]; S has the mean 0, given the
    prompt, so R may be taken less the mean of the prompt's other answers.
    """
    weight = base_weights.output_embedding(states.base)
    table = model.table(states.embedding())
    sums, variances = [], []
    for item in held:
        read = states.of(item)
        chances, tokens = (read.float() @ weight.T).softmax(-1).topk(TOP, -1)  # [steps, TOP]
        level, factors = model.parts(probe.running(read))
        outputs = level[:, None] + torch.einsum("tkr,tbr->tkb", table[tokens], factors)
        scores = outputs[..., 0]
        if info.support is not None:
            scores = outputs.softmax(-1) @ torch.linspace(*info.support, outputs.shape[-1])
        shares = chances / chances.sum(-1, keepdim=True)
        rest = scores - (shares * scores).sum(-1, keepdim=True)
        taken = tokens == torch.tensor(item.completion)[:, None]
        sums.append(float((rest * taken).sum()))
        variances.append(float((chances * rest.square()).sum()))
    spread = np.mean(variances)
    names = [tuple(item.prompt) for item in held]
    gains = []
    for name in dict.fromkeys(names):
        mine = [i for i, other in enumerate(names) if other == name]
        rewards = np.array([held[i].label for i in mine])
        centred = rewards - (rewards.sum() - rewards) / (len(mine) - 1)
        gains.append(np.mean(centred * np.array([sums[i] for i in mine])))
    scale = math.sqrt(2 / spread)
    error = float(np.std(gains, ddof=1) / math.sqrt(len(gains)))
    betas = [math.sqrt(2 * nats / spread) for nats in NATS]
    return {"foretold": [scale * float(np.mean(gains)), scale * error], "betas": betas}


def measure(folder: Path, scorers: dict[str, dict], tests: int) -> None:
    """Run every setting that is missing: rewards and nats of the answers, [prompts][answers]."""
    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    settings: dict[str, tuple[str, float] | None] = {"base": None}
    settings |= {f"{REWARD}-{b:g}": (REWARD, b) for b in (3.0, 5.0)}
    for name, facts in scorers.items():
        settings |= {f"{name}-{i}": (name, beta) for i, beta in enumerate(facts["betas"])}
    missing = [name for name in settings if not (runs / f"{name}.json").exists()]
    if not missing:
        return
    sampler, task = engine({name: folder / "scorers" / name for name in scorers})
    texts = task.world.prompts("test", tests, 0)
    prompts = [sampler.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    for name in tqdm(missing, desc="settings"):
        chosen, params = settings[name], None
        if chosen is not None:
            params = GuidanceParams(scorers={chosen[0]: 1.0}, beta=min(chosen[1], 100.0))
        groups = sampler.sample(
            prompts, ANSWERS, seed=0, temperature=1.0, max_tokens=48, params=params
        )
        answers = [
            [sampler.tokenizer.decode(one.token_ids, skip_special_tokens=True) for one in group]
            for group in groups
        ]
        kindness = task.world.rewards["kindness"]
        rewards = [
            [kindness(text, answer) for answer in group]
            for text, group in zip(texts, answers, strict=True)
        ]
        run = {
            "beta": chosen and chosen[1],
            "rewards": rewards,
            "kl": [[one.kl for one in group] for group in groups],
            "first": [group[0] for group in answers[:4]],
        }
        (runs / f"{name}.json").write_text(json.dumps(run) + "\n")


def at_one_nat(folder: Path, names: list[str]) -> list[float]:
    """Mean reward at 1 nat and its standard error over prompts."""
    points = []
    for name in ("base", *names):
        run = json.loads((folder / "runs" / f"{name}.json").read_text())
        points.append((np.mean(run["rewards"], 1), np.mean(run["kl"], 1)))
    result = estimate(at_kl(points, 1.0))
    return [result.mean, result.standard_error]


def table(rows: list[dict], base: list[float], own: list[float], tests: int) -> str:
    lines = [
        f"SmolLM2-135M-Instruct, VADER's sentiment, {tests} test prompts, {ANSWERS} answers each, "
        f"±: s.e. over prompts. Base: {base[0]:.3f} ± {base[1]:.3f}; VADER itself as a function "
        f"scorer at 1 nat: {own[0]:.3f} ± {own[1]:.3f}.",
        "",
        "| probe | answers | reward at 1 nat | foretold gain | prefix-AUC "
        "| known at 10 / 25 / 50 / 75 % | training, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        reward, gain, auc = (
            f"{row[n][0]:.3f} ± {row[n][1]:.3f}" for n in ("reward", "foretold", "auc")
        )
        known = " / ".join(f"{value:.2f}" for value in row["known"].values())
        lines.append(
            f"| `{row['method']}` | {row['answers']:,} | {reward} | {gain} | {auc} | {known} "
            f"| {row['seconds']:.0f} |"
        )
    if len(rows) > 2:
        rewards = [row["reward"][0] for row in rows]
        lines += ["", "Correlation with the reward at 1 nat, over the rows:", ""]
        for title, values in {
            "prefix-AUC": [row["auc"][0] for row in rows],
            "known at 50 %": [row["known"]["50"] for row in rows],
            "foretold gain": [row["foretold"][0] for row in rows],
        }.items():
            lines.append(f"- {title}: {np.corrcoef(values, rewards)[0, 1]:.2f}")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict], base: list[float], own: list[float], path: Path) -> None:
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        mine = [row for row in rows if row["method"] == method]
        color, sizes = f"C{number}", [row["answers"] for row in mine]
        for axis, what in zip(axes, ("reward", "auc"), strict=True):
            means, errors = zip(*(row[what] for row in mine), strict=True)
            axis.errorbar(sizes, means, errors, color=color, marker="o", markersize=4, capsize=2)
            axis.annotate(
                method,
                (sizes[-1], means[-1]),
                (6, 0),
                textcoords="offset points",
                color=color,
                va="center",
            )
    for (value, _), text in ((base, "base"), (own, "VADER itself")):
        axes[0].axhline(value, color="grey", linewidth=0.7, linestyle=":")
        axes[0].annotate(
            text, (rows[0]["answers"], value), (0, 3), textcoords="offset points", color="grey"
        )
    for axis, title in zip(axes, ("reward at 1 nat", "prefix-AUC, held-out prompts"), strict=True):
        axis.set(xscale="log", xlabel="answers to train on", ylabel=title)
        axis.set_xlim(right=max(row["answers"] for row in rows) * 2.2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few answers, sizes and prompts")
    parser.add_argument("--work", type=Path, default=WORK, help="directory of all parts")
    parser.add_argument("--rollouts", type=Path, help="default: rollouts.jsonl in DIR")
    parser.add_argument("--only", action="append", choices=METHODS, help="methods; repeatable")
    parser.add_argument("--train", action="store_true", help="only train, and measure later")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    work, turns = arguments.work, 1 if arguments.quick else TURNS
    tests = 8 if arguments.quick else TESTS
    (work / "scorers").mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rollouts = arguments.rollouts or work / "rollouts.jsonl"
    if not rollouts.exists():
        roll_out(rollouts, turns)
    by_turn, held = read(rollouts, turns)
    states = States(load("everyday").world.base(), progress=True)
    for turn in by_turn:
        states.add(turn)
    prompts = {tuple(item.prompt) for item in held}
    items = [item for turn in by_turn for item in turn if tuple(item.prompt) not in prompts]
    facts: dict[str, dict] = {}
    for method in arguments.only or METHODS:
        for size in QUICK_SIZES if arguments.quick else SIZES:
            name, saved = f"{method}-{size}", work / f"{method}-{size}.json"
            if not saved.exists():
                found = fit(method, items[:size], held, states, work / "scorers" / name)
                saved.write_text(json.dumps({"method": method, "answers": size} | found) + "\n")
            facts[name] = json.loads(saved.read_text())
            print(name, {k: v for k, v in facts[name].items() if k != "known"}, flush=True)
    if arguments.train:
        return
    measure(work, facts, tests)
    rows = [
        row | {"reward": at_one_nat(work, [f"{name}-{i}" for i in range(len(NATS))])}
        for name, row in facts.items()
    ]
    base, own = at_one_nat(work, []), at_one_nat(work, [f"{REWARD}-3", f"{REWARD}-5"])
    text = table(rows, base, own, tests)
    print(text)
    about = {
        "threads": torch.get_num_threads(),
        "device": str(torch.cuda.is_available() and "cuda"),
    }
    body = json.dumps({"about": about, "base": base, "function": own, "rows": rows}, indent=1)
    (arguments.out / "learning_curve.json").write_text(body + "\n")
    (arguments.out / "learning_curve.md").write_text(text)
    draw(rows, base, own, arguments.out / "learning_curve.png")


if __name__ == "__main__":
    main()
