"""KL budgets where the base is rarely sure, as on real text, so that a cut tail is expensive."""

import numpy as np
import pytest
import torch
from scipy.stats import binom

from trimtab.budget import SHARE
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers.base import Scorer
from trimtab_models.checkpoint import ScorerInfo

VOCAB, LENGTH, PROMPT, ROWS = 24, 24, 1, 48
LOGITS = 0.5 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(0))
BUDGETS = (1.0, 2.0, 4.0)
KINDS = {
    "expensive cut": {"tail": "truncate", "k": 16},
    "cheap cut": {"tail": "truncate", "k": 22},
    "mean": {"tail": "mean", "k": 16},
    "plain, cut": {"tail": "truncate", "k": 23, "scorers": {"plain": 1.0}},
    "plain": {"tail": "mean", "k": 16, "scorers": {"plain": 1.0}},
    "doubtful": {"tail": "mean", "k": 16, "scorers": {"doubtful": 1.0}},
    "both": {"tail": "mean", "k": 16, "scorers": {"coins": 1.0, "plain": 0.5}},
}


def cost(k):
    """Nats of a cut at any step."""
    return -float(LOGITS.softmax(0).topk(k).values.sum().log())


class Coins(Scorer):
    """Every second token is good; the return is the share of good tokens among LENGTH, exactly."""

    family = "distribution"
    distributional = True

    def __init__(self, chance, **info):
        super().__init__(ScorerInfo(**info))
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


class Plain(Scorer):
    """The same wish without a distribution, louder by turns: only its steps tell what it costs."""

    family = "head"

    def score(self, keys, prefixes, candidates, strengths, prompts=()):
        loud = [0.5 + len(prefix) % 3 for prefix in prefixes]
        pairs = zip(candidates, loud, strict=True)
        return torch.cat([torch.from_numpy(c % 2) * size for c, size in pairs]).float()


@pytest.fixture(scope="module")
def answers():
    """(kind, budget) → ROWS rows; all answers are sampled together, step by step."""
    generator = torch.Generator().manual_seed(0)
    chance = float(LOGITS.softmax(0)[1::2].sum())
    served = {
        "coins": Coins(chance),
        "doubtful": Coins(chance, known_at_end=0.5),  # not to be believed
        "plain": Plain(ScorerInfo()),
    }
    guide = Guide(served)
    groups = {}
    for kind, fields in KINDS.items():
        for budget in BUDGETS:
            sent = {"scorers": {"coins": 1.0}, "mass": 1.0, "kl_budget": budget, **fields}
            params = GuidanceParams.parse(sent).resolve(served)
            prefix = np.zeros(PROMPT, np.int64)
            groups[kind, budget] = [
                Row(params, PROMPT, prefix=prefix, max_tokens=LENGTH) for _ in range(ROWS)
            ]
    rows = [row for group in groups.values() for row in group]
    for _ in range(LENGTH):
        logits = LOGITS.expand(len(rows), -1).clone()
        guide.step(logits, list(enumerate(rows)))
        tokens = logits.softmax(1).multinomial(1, generator=generator)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.prefix = np.append(row.prefix, token)
    return groups


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_the_mean_answer_spends_its_budget(answers, budget, kind):
    spent = [sum(step.kl for step in row.steps.values()) for row in answers[kind, budget]]
    assert np.mean(spent) == pytest.approx(budget, rel=0.1)


def test_a_cut_is_told_apart_and_made_where_it_is_a_small_share_of_what_is_left(answers):
    for (kind, _), rows in answers.items():
        expected = cost(KINDS[kind]["k"])
        for row in rows:
            for step in row.steps.values():
                cuts = KINDS[kind]["tail"] == "truncate"
                affordable = cuts and expected <= SHARE * step.plan.left
                made = affordable and step.kl > 0  # at a β of 0 the step is the base's
                assert step.kl_tail == pytest.approx(expected if made else 0, abs=1e-6)
                assert step.kl_tail <= step.kl
    cut = [step.kl_tail > 0 for row in answers["cheap cut", 4.0] for step in row.steps.values()]
    assert 0.1 < np.mean(cut) < 1
