"""Learning curves on everyday: what scorers of the real base reach, by the number of rollouts.

    python benchmarks/learning_curve.py [--quick] [--work DIR] [--rollouts FILE] [--only METHOD ...]

The base is SmolLM2-135M-Instruct, the reward VADER's sentiment. 32 of the 432 training prompts are
held out; a scorer is trained on the first 250 to 4,000 answers to the others. For each it measures

    AUC        prefix-AUC on answers to the held-out prompts, as in a checkpoint's report
    known      correlation of score and reward, each less its prompt's mean, at parts of an answer
    foretold   the gain at 1 nat to first order: √2·E[R·S] / √E[Σ_t Var], S being the sum of each
               token's score less its candidates' mean, Var their variance under the base
    reward     at 1 nat, on the 48 test prompts of the arena, two answers each: each scorer runs at
               a strength, and again at one that should spend `NATS` if the first is far from it;
               it is read between them and the base, in √KL

With --networks, also networks of the base's six lowest layers, and of the whole base. They need a
GPU, or --answers 1000, with which each takes minutes on a core. Finished parts in DIR are kept: the
same command resumes, and several may share DIR. FILE has records as `rollouts.jsonl` of the arena
of everyday, with "prefix_rewards"; it is sampled if it is missing. Writes
benchmarks/results/learning_curve.{json,md,png}.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning_curve_networks import NETWORKS
from learning_curve_networks import fit as fit_network
from learning_curve_plot import draw
from tqdm import tqdm

from trimtab.params import GuidanceParams
from trimtab_lab.arena.stats import at_kl, estimate
from trimtab_lab.arena.task import REWARD, load
from trimtab_models import base_weights, checkpoint, data, pretrained, probe, report
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
REFINED = "gains-refined"
"""The probe of learning_curve_refined.py, which is measured and listed beside the others."""
HELD_OUT, TURNS, TESTS, ANSWERS = 32, 10, 48, 2
NATS, NEAR = 1.1, (0.8, 1.5)
"""KL to aim at, and what is near enough."""
TOP = GuidanceParams().k
PARTS = (10, 25, 50, 75)


def roll_out(path: Path, turns: int) -> None:
    """Answers of the base to all training prompts, one to each in a turn, with their rewards."""
    sampler, task = engine({})
    texts = task.world.prompts("train", 432, 0)
    prompts = [sampler.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    records = []
    for turn in tqdm(range(turns), desc="rollouts", unit="turn"):
        groups = sampler.sample(prompts, 1, seed=100 + turn, temperature=1.0, max_tokens=48)
        for text, ids, [answer] in zip(texts, prompts, groups, strict=True):
            records.append(labelled(text, ids, list(answer.token_ids), sampler.tokenizer, task))
    data.write(path, records)


def labelled(text: str, ids: list[int], tokens: list[int], tokenizer: Any, task: Any) -> dict:
    """The record of an answer to a prompt, with its rewards and those of its beginnings."""
    parts = [
        tokenizer.decode(tokens[: t + 1], skip_special_tokens=True) for t in range(len(tokens))
    ]
    rewards = task.world.rewards
    return {
        "prompt": text,
        "completion": parts[-1],
        "prompt_token_ids": ids,
        "completion_token_ids": tokens,
        "rewards": {name: reward(text, parts[-1]) for name, reward in rewards.items()},
        "prefix_rewards": [rewards["kindness"](text, part) for part in parts],
    }


def engine(scorers: dict[str, Path]) -> tuple[Any, Any]:
    """The base in vLLM with scorers, and the task."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # First, because vLLM hides the GPU while it imports a processor by its name.
    import trimtab.adapters.vllm.processor  # noqa: F401
    from trimtab.adapters.vllm.offline import Sampler

    task = load("everyday")
    specs: dict[str, Any] = {name: str(path) for name, path in scorers.items()}
    if scorers:
        specs |= task.scorers
    options = {**task.engine}
    if torch.cuda.is_available():
        options |= {"gpu_memory_utilization": 0.05, "kv_cache_memory_bytes": 2**31}
    return Sampler(str(task.world.base()), specs, **options), task


def read(path: Path) -> tuple[list[list[Rollout]], list[Rollout]]:
    """The answers to train on, by turns, and those to the held-out prompts."""
    items = [rollout(record) for record in data.read(path)]
    prompts = list(dict.fromkeys(tuple(item.prompt) for item in items))
    held = set(prompts[-HELD_OUT:])
    size = len(prompts)
    by_turn = [items[i : i + size] for i in range(0, len(items), size)]
    return by_turn, [item for item in items if tuple(item.prompt) in held]


def rollout(record: data.Record) -> Rollout:
    """The answer of a record, with the rewards of its beginnings."""
    return Rollout(
        record["prompt_token_ids"],
        record["completion_token_ids"],
        record["rewards"]["kindness"],
        prefix_rewards=record["prefix_rewards"],
    )


Likely = list[tuple[torch.Tensor, torch.Tensor]]


@torch.inference_mode()
def likely(items: list[Rollout], states: States) -> Likely:
    """The candidates at each step of each answer and their chances: [steps, TOP] each."""
    weight = base_weights.output_embedding(states.base)
    likely = ((states.of(item).float() @ weight.T).softmax(-1).topk(TOP, -1) for item in items)
    return [(top.indices, top.values) for top in likely]


def fit(
    name: str,
    items: list[Rollout],
    held: list[Rollout],
    steps: Likely,
    states: States,
    out: Path,
) -> dict:
    """Train a probe, write its checkpoint, and say what it knows."""
    config = TrainConfig.model_validate(
        {**METHODS[name], "probe": {}, "base": str(states.base), "data": "-", "out": out}
    )
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
        save_steps=10_000,
        **probes.DEFAULTS,
    )
    seconds = time.monotonic() - start
    model = initial.finish(trainer.model, objective, None, states).cpu()
    info = describe(objective, model, held, 0, "smollm2", states)
    checked = report.validate(model, info, held, None, 0, states=states)
    checkpoint.save(model, pretrained.tokenizer(states.base), report.mark(info, checked), out)
    known = {k.percent: k.beyond_prompt and k.beyond_prompt.value for k in checked.known}
    auc = checked.prefix_auc.mean
    return {
        "seconds": seconds,
        "auc": [auc.mean, auc.standard_error],
        "known": {str(part): known[part] for part in PARTS},
        **foretold(model, info, held, steps, states),
    }


@torch.inference_mode()
def foretold(model: Any, info: Any, held: list[Rollout], steps: Likely, states: States) -> dict:
    """The gain at 1 nat to first order, its standard error, and the β that should spend `NATS`.

    At β → 0 a step spends β²/2·Var, and the reward rises by β·E[R·S]; S has the mean 0, given the
    prompt, so R may be taken less the mean of the prompt's other answers.
    """
    table = model.table(states.embedding())
    sums, variances = [], []
    for item, (tokens, chances) in zip(held, steps, strict=True):
        level, factors = model.parts(probe.running(states.of(item)))
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
    foreseen = [scale * float(np.mean(gains)), scale * error]
    return {"foretold": foreseen, "beta": math.sqrt(2 * NATS / spread)}


def fit_all(work: Path, rollouts: Path, methods: list[str], sizes: Sequence[int]) -> None:
    """Train what is missing; sizes above the number of answers are left out."""
    by_turn, held = read(rollouts)
    states = States(load("everyday").world.base(), progress=True)
    for turn in by_turn:
        states.add(turn)
    prompts = {tuple(item.prompt) for item in held}
    items = [item for turn in by_turn for item in turn if tuple(item.prompt) not in prompts]
    steps = likely(held, states)
    for method in methods:
        for size in [size for size in sizes if size <= len(items)]:
            saved = work / f"{method}-{size}.json"
            if saved.exists():
                continue
            out = work / "scorers" / saved.stem
            if method in NETWORKS:
                fitted = fit_network(method, rollouts, size, prompts, out)
            else:
                fitted = fit(method, items[:size], held, steps, states, out)
            row = {"method": method, "answers": size} | fitted
            print(row, flush=True)
            saved.write_text(json.dumps(row) + "\n")


def measure(folder: Path, scorers: dict[str, dict], tests: int) -> None:
    """Run what is missing: rewards and nats of answers, [prompts][answers], in runs/NAME-NUMBER."""
    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    largest_first = reversed(scorers.items())
    wanted = {"base": 0.0, REWARD: 3.5} | {name: row["beta"] for name, row in largest_first}
    missing = {n: beta for n, beta in wanted.items() if not (runs / f"{n}-1.json").exists()}
    if not missing:
        return
    sampler, task = engine({name: folder / "scorers" / name for name in missing if name in scorers})
    texts = task.world.prompts("test", tests, 0)
    prompts = [sampler.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    kindness = task.world.rewards["kindness"]

    def run(name: str, beta: float) -> dict:
        params = GuidanceParams(scorers={name: 1.0}, beta=beta) if beta else None
        groups = sampler.sample(
            prompts, ANSWERS, seed=0, temperature=1.0, max_tokens=48, params=params
        )
        answers = [
            [sampler.tokenizer.decode(one.token_ids, skip_special_tokens=True) for one in group]
            for group in groups
        ]
        rewards = [
            [kindness(text, answer) for answer in group]
            for text, group in zip(texts, answers, strict=True)
        ]
        kl = [[one.kl for one in group] for group in groups]
        return {"beta": beta, "rewards": rewards, "kl": kl, "first": [a[0] for a in answers[:4]]}

    for name, beta in tqdm(missing.items(), desc="settings"):
        result = run(name, min(beta, 100.0))
        (runs / f"{name}-0.json").write_text(json.dumps(result) + "\n")
        spent = float(np.mean(result["kl"]))
        if name != "base" and not NEAR[0] < spent < NEAR[1]:  # KL is nearly a multiple of β²
            result = run(name, min(result["beta"] * math.sqrt(NATS / max(spent, 0.05)), 100.0))
        (runs / f"{name}-1.json").write_text(json.dumps(result) + "\n")


def measured(folder: Path, name: str) -> bool:
    return (folder / "runs" / f"{name}-1.json").exists()


def at_one_nat(folder: Path, name: str) -> list[float]:
    """Mean reward at 1 nat and its standard error over prompts; the base's at 0."""
    points = []
    for one in dict.fromkeys(("base-0", f"{name}-0", f"{name}-1")):
        run = json.loads((folder / "runs" / f"{one}.json").read_text())
        points.append((np.mean(run["rewards"], 1), np.mean(run["kl"], 1)))
    result = estimate(at_kl(points, 1.0) if name != "base" else points[0][0])
    return [result.mean, result.standard_error]


def table(rows: list[dict], base: list[float], own: list[float], tests: int) -> str:
    lines = [
        f"SmolLM2-135M-Instruct, VADER's sentiment, {tests} test prompts, {ANSWERS} answers each, "
        f"±: s.e. over prompts. Base: {base[0]:.3f} ± {base[1]:.3f}; VADER itself as a function "
        f"scorer at 1 nat: {own[0]:.3f} ± {own[1]:.3f}.",
        "",
        "| scorer | answers | reward at 1 nat | foretold gain | prefix-AUC "
        "| known at 10 / 25 / 50 / 75 % | training, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        reward, gain, auc = (
            f"{row[n][0]:.3f} ± {row[n][1]:.3f}" if n in row else "–"
            for n in ("reward", "foretold", "auc")
        )
        known = " / ".join(f"{value:.2f}" for value in row["known"].values())
        lines.append(
            f"| `{row['method']}` | {row['answers']:,} | {reward} | {gain} | {auc} | {known} "
            f"| {row['seconds']:.0f} |"
        )
    probed = [row for row in rows if "foretold" in row and "reward" in row]
    if len(probed) > 2:
        rewards = [row["reward"][0] for row in probed]
        lines += ["", "Correlation with the reward at 1 nat, over the probes:", ""]
        for title, values in {
            "prefix-AUC": [row["auc"][0] for row in probed],
            "known at 50 %": [row["known"]["50"] for row in probed],
            "foretold gain": [row["foretold"][0] for row in probed],
        }.items():
            lines.append(f"- {title}: {np.corrcoef(values, rewards)[0, 1]:.2f}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few answers, sizes and prompts")
    parser.add_argument("--work", type=Path, default=WORK, help="directory of all parts")
    parser.add_argument("--rollouts", type=Path, help="default: rollouts.jsonl in DIR")
    parser.add_argument("--only", action="append", choices=[*METHODS, *NETWORKS], help="repeatable")
    parser.add_argument("--networks", action="store_true", help="also networks")
    parser.add_argument("--answers", type=int, action="append", help="instead of 250 to 4,000")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--train", action="store_true", help="only train, and measure later")
    part.add_argument("--measure", action="store_true", help="only measure what is trained")
    part.add_argument("--table", action="store_true", help="only write what is known so far")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    work, turns = arguments.work, 2 if arguments.quick else TURNS
    tests = 8 if arguments.quick else TESTS
    (work / "scorers").mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rollouts = arguments.rollouts or work / "rollouts.jsonl"
    sizes = arguments.answers or (QUICK_SIZES if arguments.quick else SIZES)
    methods = arguments.only or [*METHODS, *(NETWORKS if arguments.networks else ())]
    files = [work / f"{method}-{size}.json" for method in methods for size in sizes]
    trained = arguments.measure or arguments.table or all(file.exists() for file in files)
    if not trained:
        if not rollouts.exists():
            roll_out(rollouts, turns)
        fit_all(work, rollouts, methods, sizes)
    if arguments.train:
        return
    files += [work / f"{REFINED}-{size}.json" for size in sizes]
    facts = {file.stem: json.loads(file.read_text()) for file in files if file.exists()}
    if not arguments.table:
        measure(work, facts, tests)
    rows = [
        row | ({"reward": at_one_nat(work, name)} if measured(work, name) else {})
        for name, row in facts.items()
    ]
    base, own = at_one_nat(work, "base"), at_one_nat(work, REWARD)
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
