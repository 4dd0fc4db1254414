"""With draft tokens, accepted or not, guidance equals guidance token by token."""

import numpy as np
import pytest
import torch

from networks import configs
from test_backbone import build
from trimtab import drafts
from trimtab.guide import Guide
from trimtab.params import GuidanceParams
from trimtab.records import Records
from trimtab.rows import Row
from trimtab.scorers import FunctionScorer, HeadScorer
from trimtab.scorers.base import Scorer
from trimtab.states import States
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.readout import soft_value

VOCAB, HIDDEN, STOP = 24, 6, 0
MOST = 3
KINDS = (
    {"scorers": {"plain": 1.0}, "beta": 2.0, "trace": True},
    {"scorers": {"net": 1.0, "plain": 0.5}, "beta": 3.0, "tail": "mean"},
    {"scorers": {"net": -1.0}, "beta": 2.0, "mass": 0.6},
    {"scorers": {"states": 1.0}, "beta": 2.0},
    {"scorers": {"states": 1.0, "net": 1.0}, "beta": -1.0, "k": 4, "mass": 1.0},
    {
        "scorers": {"returns": 1.0},
        "kl_budget": 2.0,
        "utility": {"returns": {"cvar": 0.3}},
        "trace": True,
    },
    {"scorers": {"returns": 1.0}, "floors": {"returns": 0.5}, "ceilings": {"returns": 0.7}},
    {"scorers": {"plain": 1.0}, "beta": 0.0},
    {"scorers": {"fails": 1.0}, "beta": 1.0, "on_error": "unguided"},
    {"scorers": {"fails": 1.0}, "beta": 1.0, "on_error": "fail"},
    {"scorers": {"nan": 1.0, "plain": 1.0}, "beta": 1.0, "on_error": "unguided"},
    {"scorers": {"nan": 1.0, "plain": 1.0}, "beta": 1.0, "on_error": "fail"},
)


def noise(*what, of):
    """Standard normal numbers, a function of the tokens."""
    tokens = tuple(int(token) for part in what for token in part)
    generator = torch.Generator().manual_seed(hash(tokens) % 2**31)
    return torch.randn(of, generator=generator)


def base(prefix):
    """Logits of the base; it hardly ever stops."""
    logits = 2 * noise(prefix, of=VOCAB)
    logits[STOP] -= 5
    return logits


class Returns(Scorer):
    """Any return distributions."""

    family = "distribution"
    distributional = True
    returns = torch.linspace(-1, 1, 5)

    def histograms(self, keys, prefixes, candidates, prompts=()):
        rows = zip(prefixes, candidates, strict=True)
        return torch.stack([noise(p, (v,), of=5) for p, group in rows for v in group])

    def score(self, keys, prefixes, candidates, strengths, prompts=()):
        counts = torch.tensor([len(group) for group in candidates])
        c = torch.tensor(strengths).repeat_interleave(counts)
        return soft_value(self.histograms(keys, prefixes, candidates), self.returns, c)


class OfStates(Scorer):
    """A probe: it reads the last state and the mean, and no token of the prefix."""

    family = "probe"
    reads_states = True

    def score(self, keys, prefixes, candidates, strengths, prompts=(), *, states):
        return torch.cat(
            [
                torch.stack([(noise((v,), of=(2, HIDDEN)) * state).sum() for v in group])
                for group, state in zip(candidates, states, strict=True)
            ]
        )


def fails(ids):
    """Fails for some texts, whichever they are, and for all long ones.

    So every answer has failed before its end: a step after the last token may fail as well.
    """
    if sum(ids) % 97 == 0 or len(ids) > 15:
        raise RuntimeError("secret")
    return float(np.sin(sum(ids)))


class Undefined(Scorer):
    """Has no score of texts that are too long."""

    def score(self, keys, prefixes, candidates, strengths, prompts=()):
        rows = zip(prefixes, candidates, strict=True)
        sums, lengths = torch.tensor([(sum(p) + v, len(p)) for p, g in rows for v in g]).T
        return torch.where(lengths > 13, torch.nan, sums.cos())


def make(late=False):
    """A guide of its own, with scorers that keep what they read."""
    net = HeadScorer(ScorerInfo(), build(configs()["llama"], pool_bytes=170 * 3 * 2 * 2 * 16 * 4))
    scorers = {
        "plain": FunctionScorer(lambda ids: float(np.sin(np.dot(ids, ids[::-1])))),
        "fails": FunctionScorer(fails),
        "nan": Undefined(ScorerInfo()),
        "net": net,
        "returns": Returns(ScorerInfo()),
        "states": OfStates(ScorerInfo()),
    }
    guide = Guide(scorers)
    guide.late = late
    guide.states.former = 1 + 2 * MOST
    return guide


def decode(guide, prompts, tokens, propose=lambda i, prefix: (), rng=None):
    """Greedy answers to all prompts in one batch: the guided logits before each of their tokens,
    and the records; and how many draft tokens were accepted.

    propose: draft tokens of request i after a prefix. rng: rows are preempted, and go on for a
    step after their last token, as with asynchronous scheduling.
    """
    kinds = [GuidanceParams.parse(kind) for kind in KINDS]

    def row(i, text):
        return Row(kinds[i], len(prompts[i]), STOP, record_key=str(i), prefix=np.array(text))

    rows = {i: row(i, prompt) for i, prompt in enumerate(prompts)}
    answers, logits, accepted = {}, {}, 0
    while rows:
        batch, first = [], {}
        guide.catch_up()
        for i, one in rows.items():
            guide.registry.forget(drafts.settle(one, guide.records))
            first[i] = len(batch)
            batch += [one, *drafts.ahead(one, propose(i, one.prefix))]
        before = torch.stack([base(one.prefix) for one in batch] + [base([1])])
        hidden = torch.stack([noise(one.prefix, (1,), of=HIDDEN) for one in batch])
        after = before.clone()
        guide.step(after, list(enumerate(batch)), hidden)
        assert torch.equal(after[-1], before[-1])
        for i, one in list(rows.items()):
            if i in answers:
                del rows[i]
                continue
            for b, draft in enumerate((*one.drafted, None), first[i]):
                text = np.append(batch[b].prefix, int(after[b].argmax()))
                if i not in answers:  # an engine may accept draft tokens after the last token
                    logits[i, len(text)] = after[b]
                    if text[-1] == STOP or len(text) == len(prompts[i]) + tokens:
                        answers[i] = text[len(prompts[i]) :].tolist()
                if draft is None or draft.prefix[-1] != text[-1]:
                    break
                accepted += 1
            if i in answers and (rng is None or rng.random() < 0.5):
                del rows[i]
            elif rng is not None and rng.random() < 0.1:
                guide.states.end(one.drafted[-1] if one.drafted else one)
                rows[i] = row(i, text)
            else:
                one.prefix = text
        for one in batch:
            one.earlier = None
    records = [
        guide.records.report(str(i), prompt, [answers[i]], done=True)[0]
        for i, prompt in enumerate(prompts)
    ]
    return answers, logits, records, accepted


def case(seed):
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(1, VOCAB, size=rng.integers(1, 9)).tolist() for _ in KINDS]
    longer, *_ = decode(make(), prompts, 16 + MOST)
    return rng, prompts, longer, decode(make(), prompts, 16)


def proposals(rng, prompts, answers):
    """Up to MOST draft tokens: those of the answer, more or less."""

    def propose(i, prefix):
        n = len(prefix) - len(prompts[i])
        tokens = rng.integers(1, VOCAB, size=rng.choice([0, 1, 2, MOST, MOST, MOST]))
        answer = answers[i][n : n + len(tokens)]
        right = rng.random(len(answer)) < 0.8
        tokens[: len(answer)] = np.where(right, answer, tokens[: len(answer)])
        return tokens.tolist()

    return propose


def equal(a, b):
    """Whether two records are equal, up to rounding."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return abs(a - b) < 1e-3 if isinstance(a, float) else a == b


@pytest.mark.parametrize(("busy", "late"), [(False, False), (True, False), (True, True)])
def test_drafts_change_nothing(busy, late):
    """Also where a step is noted only at the next one."""
    rng, prompts, longer, (answers, logits, records, _) = case(np.random.SeedSequence().entropy)
    for _ in range(3):
        propose = proposals(rng, prompts, longer)
        result = decode(make(late), prompts, 16, propose, rng if busy else None)
        assert result[0] == answers
        assert result[1].keys() == logits.keys()
        for at, guided in logits.items():
            torch.testing.assert_close(result[1][at], guided, rtol=1e-3, atol=1e-3)
        for record, expected in zip(result[2], records, strict=True):
            assert equal(record, expected), (record, expected)
        assert result[3] > 20


@pytest.mark.parametrize("careless", ["kept", "lost"])
def test_the_control(careless, monkeypatch):
    """Steps of rejected draft tokens that are kept, or states of accepted ones that are lost."""
    rng, prompts, longer, (_, _, records, _) = case(2)
    if careless == "kept":
        monkeypatch.setattr(Records, "drop", lambda *_: None)
    else:
        monkeypatch.setattr(States, "_at", lambda self, row, prefix: None)
    results = [decode(make(), prompts, 16, proposals(rng, prompts, longer)) for _ in range(3)]
    assert not all(all(map(equal, result[2], records)) for result in results)


class Clocked(Scorer):
    """Takes `seconds` for each row, on a clock of its own."""

    family = "clocked"
    keeps_time = True

    def __init__(self, seconds):
        super().__init__(ScorerInfo())
        self.seconds, self.now = seconds, 0.0

    def score(self, keys, prefixes, candidates, strengths, prompts=()):
        self.now += self.seconds * len(keys)
        return torch.zeros(sum(map(len, candidates)))


@pytest.mark.parametrize("kind", [{"beta": 1.0}, {"kl_budget": 2.0}], ids=["fixed", "budget"])
@pytest.mark.parametrize("drafted", [0, 3])
@pytest.mark.parametrize("seconds", [0.9, 1.1])
def test_the_limit_is_for_each_position(kind, drafted, seconds, monkeypatch):
    """Each of d + 1 positions may take the limit, together or one after another; not more."""
    scorer = Clocked(seconds)
    monkeypatch.setattr("time.monotonic", lambda: scorer.now)
    guide = Guide({"clocked": scorer}, 1.0)
    guide.registry.calls.status(scorer).answered = True  # a first call may take longer
    row = Row(
        GuidanceParams.parse({"scorers": {"clocked": 1.0}, "mass": 1.0, "k": 4, **kind}),
        2,
        prefix=np.array([1, 2]),
        max_tokens=9,
    )
    rows = [row, *drafts.ahead(row, range(drafted))]
    guide.step(torch.zeros(len(rows), VOCAB), list(enumerate(rows)))
    assert scorer.now == pytest.approx(
        seconds * (1 if kind.get("kl_budget") and seconds > 1 else len(rows))
    )
    assert [bool(one.fault and one.fault.overrun) for one in rows] == [seconds > 1] * len(rows)
