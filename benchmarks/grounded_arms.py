"""The arms of the preference-grounded paper, on the demo in small.

    python benchmarks/grounded_arms.py [--reward sentiment] [--steps 40] [--only "K = 5" ...]

All models start from the demo's base and train for the same number of steps on the same reviews.
One setting differs between an arm and the reference of its algorithm: the aggregation and its
temperature β (Tables 6 and 10), the number K of ranked sequences (Tables 8 and 9), the weight α of
the entropy (Figure 6), the re-estimation of rewards (Table 7, footnote 2), or a reward of the whole
sequence in place of token rewards (Table 6). Each model answers the same 200 test prompts once, and
is compared with its reference by paired Wilcoxon tests. One training of each arm: its own noise is
not measured. Writes benchmarks/results/grounded_arms.{json,md}; an arm takes about half a minute on
one core, and is kept in .work/grounded-arms.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from grounded import PROMPTS, SEED, SHARED, TURNS, judge, reviews
from kept import Kept, machine
from torch import Tensor

from trimtab_lab.arena.stats import holm, paired
from trimtab_models import data
from trimtab_models.demo import oracles
from trimtab_models.objectives.plackett_luce import PlackettLuce
from trimtab_models.rows import Rows
from trimtab_models.training.grounded import job, turns
from trimtab_models.training.grounded.guidance import TokenRewards
from trimtab_models.training.grounded.settings import GroundedConfig

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MLE, REINFORCE = "weighted MLE", "REINFORCE"
OBJECTIVES = {MLE: "grounded-mle", REINFORCE: "grounded-reinforce"}
K, ALPHA, BETA = 3, 1 / 8, 2.0
SEQUENCE = "reward of the sequence"
REFERENCE = "average"
_SOFT = {
    f"soft {kind}imum, β = {beta:g}": {
        "options": {"aggregation": f"soft-{kind}imum", "temperature": beta}
    }
    for kind, betas in (("min", (0.25, 0.5, 1.0, BETA, 4.0)), ("max", (0.5, BETA)))
    for beta in betas
}
ARMS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    MLE: {
        REFERENCE: {},
        "sum": {"options": {"aggregation": "sum"}},
        **_SOFT,
        **{f"K = {k}": {"k": k} for k in (2, 4, 5, 6, 7)},
        "rewards estimated once": {"reestimate": 0.0},
        "rewards estimated throughout": {"reestimate": 1.0},
        SEQUENCE: {},
    },
    REINFORCE: {
        REFERENCE: {},
        **{f"α = {alpha:g}": {"alpha": alpha} for alpha in (0.0, 1 / 32, 1 / 4)},
        "rewards estimated once": {"reestimate": 0.0},
        SEQUENCE: {},
    },
}
"""Algorithm → arm → what differs from its reference: average, K = 3, α = 1/8, rewards estimated
during the first half."""


class LastLuce(PlackettLuce):
    """Plackett-Luce over C·r of whole sequences: r is read after the last token."""

    def aggregate(self, rewards: Tensor, rows: Rows) -> Tensor:
        return self.scales(rows) * rewards[:, -1]  # columns after an end repeat it


class SequenceRewards(TokenRewards):
    """The reward of the whole sequence, for each of its tokens."""

    def __call__(self, rows: Rows) -> Tensor:
        rewards = super().__call__(rows)
        return rewards[:, -1:].expand_as(rewards)


def sequence_mle(logits: Tensor, rows: Rows, rewards: Tensor) -> Tensor:
    """−E r(y)·(1/T)·Σ_t log π(y_t): weights are not normalised within the sequence."""
    taken = rows.chosen(logits.float().log_softmax(-1)).masked_fill(~rows.mask(), 0.0)
    return -(rewards[:, 0] * taken.sum(1) / rows.completions).mean()


@contextmanager
def level(arm: str) -> Iterator[None]:
    """Token rewards, or for one arm the reward of the sequence."""
    if arm != SEQUENCE:
        yield
        return
    with (
        patch.object(job, "PlackettLuce", LastLuce),
        patch.object(job, "TokenRewards", SequenceRewards),
        patch.object(turns, "weighted_mle", sequence_mle),
    ):
        yield


def train(algorithm: str, arm: str, reward: str, steps: int, seed: int) -> dict[str, Any]:
    """The rewards and lengths of an arm's answers."""
    fields: dict[str, Any] = {**SHARED, **TURNS, "k": K, "steps": steps}
    if OBJECTIVES[algorithm] == "grounded-reinforce":
        fields["alpha"] = ALPHA
    fields |= {"period": steps // 4, "options": {"aggregation": REFERENCE}, "seed": seed}
    with tempfile.TemporaryDirectory() as folder, level(arm):
        work = Path(folder)
        data.write(work / "reviews.jsonl", reviews())
        config = GroundedConfig(
            objective=OBJECTIVES[algorithm],
            base="demo",
            data=str(work / "reviews.jsonl"),
            reward=f"trimtab_models.demo.oracles:{reward}",
            out=work / "model",
            **{**fields, **ARMS[algorithm][arm]},
        )
        return judge(job.run(config), reward)


def summary(runs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each arm's mean reward, and minus its reference's; Holm over all arms, two-sided."""
    rows = []
    for label, run in runs.items():
        algorithm, _, arm = label.partition(": ")
        values = np.array(run["rewards"], dtype=float)
        row: dict[str, Any] = {"algorithm": algorithm, "arm": arm, "reward": float(values.mean())}
        row |= {"error": float(values.std(ddof=1) / len(values) ** 0.5), "n": len(values)}
        row["tokens"] = float(np.mean(run["lengths"]))
        reference = runs.get(f"{algorithm}: {REFERENCE}")
        if arm != REFERENCE and reference is not None:
            theirs = np.array(reference["rewards"], dtype=float)
            gap, back = paired(values, theirs), paired(theirs, values)
            row |= {"difference": gap.difference, "low": gap.low, "high": gap.high}
            row["p"] = min(1.0, 2 * min(gap.p, back.p))
        rows.append(row)
    tested = [row for row in rows if "p" in row]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    return rows


def report(results: Mapping[str, Any]) -> str:
    """The table, in Markdown."""
    lines = [
        "# The arms of preference-grounded training",
        "",
        f"`{results['command']}`: {PROMPTS} test prompts, one answer each at temperature 1, exact "
        f"{results['reward']} in [−1, 1]; {results['steps']} steps of {SHARED['batch_size']} "
        f"reviews from the demo's base, seed {results['seed']}, one training of each arm. The "
        f"reference of each algorithm: average, K = {K}, α = 1/8, rewards estimated every quarter "
        "of the training during its first half. Differences are paired by prompt [95 %]; p: "
        "Wilcoxon, two-sided, then Holm over all arms.",
        "",
        "| algorithm | arm | reward ± s.e. | tokens | − reference | p | Holm |",
        "|---" * 7 + "|",
    ]
    for row in results["rows"]:
        gap = "| | "
        if "p" in row:
            gap = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}] | "
            gap += f"{row['p']:.1e} | {row['p_holm']:.1e} "
        lines.append(
            f"| {row['algorithm']} | {row['arm']} | {row['reward']:.3f} ± {row['error']:.3f} | "
            f"{row['tokens']:.0f} | {gap}|"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--reward", choices=oracles.rewards, default="sentiment")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", action="append", help="this arm; repeatable")
    arguments = parser.parse_args()
    reward, steps, seed = arguments.reward, arguments.steps, arguments.seed
    torch.set_num_threads(1)
    kept = Kept(ROOT / ".work" / "grounded-arms" / f"{reward}-{steps}-{seed}.json")
    runs = {"the base: ": kept("the base: ", lambda: judge(_base(), reward))}
    for algorithm, arms in ARMS.items():
        for arm in arms:
            label = f"{algorithm}: {arm}"
            if not arguments.only or arm in (REFERENCE, *arguments.only):
                measured = partial(train, algorithm, arm, reward, steps, seed)
                runs[label] = kept(label, measured)
                print(label, round(float(np.mean(runs[label]["rewards"])), 3), flush=True)
    results = {
        "command": f"python benchmarks/grounded_arms.py --reward {reward} --steps {steps}",
        "reward": reward,
        "steps": steps,
        "seed": seed,
        "rows": summary(runs),
        "machine": machine(),
        "runs": runs,
    }
    (RESULTS / "grounded_arms.json").write_text(json.dumps(results) + "\n")
    (RESULTS / "grounded_arms.md").write_text(report(results))


def _base() -> Path:
    from trimtab_models import demo

    return demo.base()


if __name__ == "__main__":
    main()
