"""A judge of pairs: a language model behind an OpenAI-compatible endpoint says which is better.

Each pair is judged once, in a random order that the seed decides, because judges prefer a position
(the papers' protocol). A task file sets it as `judge: "judge:http://HOST/v1,model=NAME"`.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from trimtab_lab.arena.runs import Run
from trimtab_models import outputs, rewards
from trimtab_models.rewards.judge import JudgeReward

TEMPLATE = """You compare two answers to the same request.

Asked:
{prompt}

{completion}

Which answer is better: more helpful, correct and well written? Reply with one number and nothing \
else: 1 if the first is better, 2 if the second is, 0 if they are equally good."""

REMEDY = "remove it to ask the judge again"


@dataclass(frozen=True)
class Verdict:
    """Shares of pairs won, tied and lost, and the p of a two-sided sign test."""

    win: float
    tie: float
    lose: float
    p: float
    n: int


@dataclass(frozen=True)
class StoredVerdict:
    """A verdict, with its judge and the settings of the run."""

    judge: str
    settings: dict[str, Any]
    verdict: Verdict


def compare(
    spec: str, prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str], seed: int = 0
) -> Verdict:
    """The judge's verdict on answers to the same prompts.

    Raises:
        RewardError: the specification is not a judge, or the judge fails on all retries.
    """
    judge = rewards.load(spec)
    if not isinstance(judge, JudgeReward):
        raise rewards.RewardError("a judge of pairs must be judge:http(s)://HOST/v1,model=NAME.")
    judge.template = TEMPLATE
    rng = random.Random(seed)
    swapped = [rng.random() < 0.5 for _ in prompts]
    records = []
    for prompt, a, b, swap in zip(prompts, ours, theirs, swapped, strict=True):
        first, second = (b, a) if swap else (a, b)
        both = f"First answer:\n{first}\n\nSecond answer:\n{second}"
        records.append({"prompt": prompt, "completion": both})
    replies = rewards.label(judge, records)
    if wrong := [reply for reply in replies if reply not in (0, 1, 2)]:
        raise rewards.RewardError(f"the judge replied {wrong[0]:g}; expected 0, 1 or 2.")
    won = sum(r == (2 if swap else 1) for r, swap in zip(replies, swapped, strict=True))
    tied, n = replies.count(0), len(replies)
    lost = n - won - tied
    p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return Verdict(won / n, tied / n, lost / n, p, n)


def verdicts(
    spec: str, prompts: Sequence[str], runs: Sequence[Run], base: Run, path: Path
) -> dict[str, Verdict]:
    """The verdict on the first answers of each run against the base's, by method.

    Verdicts are stored in a file; stored ones are not judged again.

    Raises:
        Damaged: (a ValueError) the file is damaged.
        RewardError: as `compare`.
    """
    stored = outputs.read(path, dict[str, StoredVerdict], REMEDY) if path.exists() else {}
    result = {}
    for run in runs:
        settings = json.loads(json.dumps(dict(run.settings)))
        one = stored.get(run.label)
        if one is None or (one.judge, one.settings) != (spec, settings):
            one = StoredVerdict(spec, settings, compare(spec, prompts, run.texts, base.texts))
            stored[run.label] = one
            outputs.put(path, json.dumps({name: asdict(v) for name, v in stored.items()}) + "\n")
        result[run.method] = one.verdict
    return result
