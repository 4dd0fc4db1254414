"""Train the demo's language model itself: token-level rewards compared with plain likelihood.

    python benchmarks/grounded.py [--reward sentiment]

All models start from the demo's base and train on the same reviews of its corpus for the same
number of steps: plain maximum likelihood; reward-weighted maximum likelihood and REINFORCE, each
with the token rewards of an average and of a sum. Then each answers the same 200 test prompts once.
The exact rewards are compared with paired Wilcoxon signed-rank tests. Writes this reward's part of
benchmarks/results/grounded.{json,md}; one reward takes about five minutes on one core.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab_models import data, demo, training
from trimtab_models.demo import oracles, rollouts, world
from trimtab_models.rows import Rollout, pad
from trimtab_models.training.grounded import job
from trimtab_models.training.grounded.settings import GroundedConfig

RESULTS = Path(__file__).parent / "results"
PROMPTS, REVIEWS, SEED = 200, 4000, 7
SHARED = {"steps": 60, "batch_size": 16, "learning_rate": 1e-4}
TURNS = {
    "period": 10,
    "max_new_tokens": rollouts.MOST_TOKENS,
    "layers": 2,
    "k": 4,
    "rankings": 48,
    "reward_epochs": 2,
    "reward_learning_rate": 1e-3,
}
NOTE = """\
Lengths differ: the corpus has reviews of 1 to 7 sentences. A sum of token rewards grows with the
length alone, so what rankings teach it is spent on lengths first; an average cannot do that.
Brevity is the control: there the reward is the length itself.
"""
RUNS = {
    f"{label}, {aggregation}": (f"grounded-{algorithm}", aggregation)
    for algorithm, label in (("mle", "weighted MLE"), ("reinforce", "REINFORCE"))
    for aggregation in ("average", "sum")
}


def reviews() -> list[data.Record]:
    """The training data of all models: training requests with reviews of the corpus."""
    rng = random.Random(SEED)
    return [
        {
            "prompt": demo.chat(prompt),
            "completion": world.review(world.kind_in(prompt), rng),
            "reward": 0.0,
        }
        for prompt in world.prompts("train", REVIEWS, SEED)
    ]


def plain(records: Sequence[data.Record], work: Path) -> Path:
    """Maximum likelihood, token by token, for the same number of steps."""
    tokenizer = AutoTokenizer.from_pretrained(demo.base())
    model = AutoModelForCausalLM.from_pretrained(demo.base(), dtype=torch.float32)
    items = data.rollouts(records, tokenizer)

    def collate(chosen: Sequence[Rollout]) -> dict[str, Tensor]:
        rows = pad(chosen, tokenizer.pad_token_id)
        positions = torch.arange(rows.input_ids.shape[1])
        answered = (positions >= rows.prompts[:, None]) & rows.attention_mask.bool()
        return {
            "input_ids": rows.input_ids,
            "attention_mask": rows.attention_mask,
            "labels": rows.input_ids.where(answered, -100),
        }

    training.fit(
        model,
        items,
        collate,
        lambda network, batch: network(**batch).loss,
        work / ".plain",
        epochs=1,
        max_steps=SHARED["steps"],
        batch_size=SHARED["batch_size"],
        learning_rate=SHARED["learning_rate"],
        lr_scheduler_type="constant",
        warmup_steps=0,
        seed=SEED,
    )
    model.save_pretrained(work / "plain")
    return work / "plain"


def judge(model: Path, reward: str) -> dict[str, list[float]]:
    """Rewards and lengths, in tokens, of one answer to each test prompt."""
    tokenizer = AutoTokenizer.from_pretrained(demo.base())
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    prompts = [demo.chat(prompt) for prompt in demo.prompts("test", PROMPTS, SEED)]
    answers = rollouts.sample(network, tokenizer, prompts, SEED)
    return {
        "rewards": [oracles.rewards[reward]("", answer["completion"]) for answer in answers],
        "lengths": [len(answer["completion_token_ids"]) for answer in answers],
        "examples": [answer["completion"] for answer in answers[:3]],
    }


def p_value(better: dict, worse: dict) -> float:
    """Paired, one-sided: the first one's rewards are higher."""
    gains = np.subtract(better["rewards"], worse["rewards"])
    return float(stats.wilcoxon(gains, alternative="greater").pvalue)


def report(reward: str, runs: dict[str, dict], seconds: dict[str, float]) -> str:
    """The tables, in Markdown."""
    lines = [
        f"## {reward.capitalize()}",
        "",
        f"`python benchmarks/grounded.py --reward {reward}`: {PROMPTS} test prompts, one answer "
        f"each at temperature 1, exact {reward} in [−1, 1]; {SHARED['steps']} steps of "
        f"{SHARED['batch_size']} reviews from the same start.",
        "",
        "| trained by | reward ± s.e. | tokens | p, better than plain MLE | seconds |",
        "|---|---|---|---|---|",
    ]
    for name, run in runs.items():
        values = np.array(run["rewards"])
        error = values.std(ddof=1) / len(values) ** 0.5
        p = f"{p_value(run, runs['plain MLE']):.1e}" if name in RUNS else "–"
        lines.append(
            f"| {name} | {values.mean():.3f} ± {error:.3f} | {np.mean(run['lengths']):.0f} "
            f"| {p} | {seconds.get(name, 0):.0f} |"
        )
    lines += ["", "| average against sum | difference | p, average better | p, sum better |"]
    lines += ["|---|---|---|---|"]
    for label in ("weighted MLE", "REINFORCE"):
        average, total = runs[f"{label}, average"], runs[f"{label}, sum"]
        gain = np.mean(average["rewards"]) - np.mean(total["rewards"])
        lines.append(
            f"| {label} | {gain:+.3f} | {p_value(average, total):.1e} "
            f"| {p_value(total, average):.1e} |"
        )
    lines += ["", "First answers:", ""]
    lines += [f"- {name}: {run['examples'][0]}" for name, run in runs.items()]
    return "\n".join(lines) + "\n"


def write(reward: str, measured: dict) -> None:
    """Add a reward's results to those of the other rewards."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "grounded.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[reward] = measured
    path.write_text(json.dumps(results, indent=1) + "\n")
    parts = [report(name, one["runs"], one["seconds"]) for name, one in sorted(results.items())]
    text = "\n".join(["# Training the language model itself\n", NOTE, *parts])
    (RESULTS / "grounded.md").write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--reward", choices=oracles.rewards, default="sentiment")
    reward = parser.parse_args().reward
    torch.set_num_threads(1)
    runs, seconds = {"the base": judge(demo.base(), reward)}, {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        records = reviews()
        data.write(work / "reviews.jsonl", records)
        start = time.monotonic()
        runs["plain MLE"] = judge(plain(records, work), reward)
        seconds["plain MLE"] = time.monotonic() - start
        for name, (objective, aggregation) in RUNS.items():
            config = GroundedConfig(
                objective=objective,
                options={"aggregation": aggregation},
                base="demo",
                data=str(work / "reviews.jsonl"),
                reward=f"trimtab_models.demo.oracles:{reward}",
                out=work / name,
                seed=SEED,
                **SHARED,
                **TURNS,
            )
            start = time.monotonic()
            runs[name] = judge(job.run(config), reward)
            seconds[name] = time.monotonic() - start
            print(name, round(float(np.mean(runs[name]["rewards"])), 3), flush=True)
    write(reward, {"settings": {**SHARED, **TURNS}, "runs": runs, "seconds": seconds})


if __name__ == "__main__":
    main()
