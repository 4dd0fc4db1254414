"""KL budgets where the base is rarely sure, as on real text, so that a cut tail is expensive."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers.base import Scorer
from trimtab_models.checkpoint import ScorerInfo

VOCAB, LENGTH, PROMPT, ROWS, K = 64, 24, 1, 64, 16
LOGITS = 0.5 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(0))
CUT = -float(LOGITS.softmax(0).topk(K).values.sum().log())
"""Nats of a cut at any step."""
BUDGETS = (1.0, 2.0, 4.0)
TAILS = ("truncate", "mean")


class Coins(Scorer):
    """Every second token is good; the return is the share of good tokens among LENGTH, exactly."""

    family = "distribution"
    distributional = True

    def __init__(self, chance):
        super().__init__(ScorerInfo())
        self.returns = torch.linspace(0, 1, LENGTH + 1)
        goods = np.arange(LENGTH + 1)
        table = [binom.pmf(goods[None] - goods[:, None], LENGTH - t, chance) for t in goods]
        self.logits = torch.tensor(np.array(table)).clamp(min=1e-30).log().float()

    def score(self, keys, prefixes, candidates, strengths, prompts=()):
        raise AssertionError("budgets read histograms")

    def histograms(self, keys, prefixes, candidates, prompts=()):
        so_far = [int((prefix[PROMPT:] % 2).sum()) for prefix in prefixes]
        at = [len(prefix) - PROMPT + 1 for prefix in prefixes]
        goods = [torch.from_numpy(c % 2) + n for c, n in zip(candidates, so_far, strict=True)]
        return torch.cat([self.logits[t, g] for t, g in zip(at, goods, strict=True)])


@pytest.fixture(scope="module")
def rows():
    """Answers under each budget and each tail, ROWS apiece, sampled step by step."""
    generator = torch.Generator().manual_seed(0)
    served = {"coins": Coins(float(LOGITS.softmax(0)[1::2].sum()))}
    guide = Guide(served)
    fields = [
        {"kl_budget": budget, "tail": tail, "k": K, "mass": 1.0}
        for budget in BUDGETS
        for tail in TAILS
        for _ in range(ROWS)
    ]
    rows = [
        Row(GuidanceParams.parse(one).resolve(served), PROMPT, prefix=np.zeros(PROMPT, np.int64))
        for one in fields
    ]
    for row in rows:
        row.record_key = "kept"
    for _ in range(LENGTH):
        logits = LOGITS.expand(len(rows), -1).clone()
        guide.step(logits, list(enumerate(rows)))
        tokens = logits.softmax(1).multinomial(1, generator=generator)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.prefix = np.append(row.prefix, token)
    return rows


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_mean_answer_spends_its_budget(rows, budget, tail):
    spent, good = [], []
    for row in rows:
        if row.params.kl_budget == budget and row.params.tail == tail:
            spent.append(sum(step.kl for step in row.steps.values()))
            good.append((row.prefix[PROMPT:] % 2).mean())
    print(budget, tail, np.mean(spent), np.std(spent) / 8, np.mean(good), CUT)
    assert np.mean(spent) == pytest.approx(budget, rel=0.1)


def test_what_a_cut_costs_is_told_apart(rows):
    """A cut costs −log π0(candidates) at its step, or is not made at all."""
    for row in rows:
        steps = [step for _, step in sorted(row.steps.items())]
        assert all(0 <= step.kl_tail <= step.kl for step in steps)
        costs = {round(step.kl_tail, 4) for step in steps if step.kl_tail > 0}
        if row.params.tail == "mean":
            assert not costs
        else:
            assert costs == {round(CUT, 4)}
            assert any(step.kl_tail == 0 for step in steps), "it cannot pay for all"
