"""Do sampled tokens follow the distributions that they should be drawn from?

If t is drawn from p, u = Σ p(v) over the tokens before t in some order, plus a uniform share of
p(t), is uniform in [0, 1] (Rosenblatt, 1952). The order may differ at each token, but not depend on
t. So all tokens of an answer make one chi-square test, whatever their prefixes.
"""

import numpy as np
from scipy import stats

from trimtab import drafts


def place(p, token, order, share):
    """u of one token. p: [vocab]. order: all tokens. share: a uniform number in [0, 1]."""
    assert p[token] > 0, "a token that has no probability was sampled"
    return p[order[: list(order).index(token)]].sum() + share * p[token]


def p_value(places, bins=10):
    """Of the chi-square test that places are uniform."""
    return float(stats.chisquare(np.histogram(places, bins, (0, 1))[0]).pvalue)


def remember_drafts():
    """From now on, the draft token after each prefix, of an engine that drafts by prefixes."""
    known = {}
    original = drafts.ahead

    def remembering(row, tokens):
        prefix = tuple(row.prefix.tolist())
        for i, token in enumerate(tokens):
            known[(*prefix, *tokens[:i])] = int(token)
        return original(row, tokens)

    drafts.ahead = remembering
    return known


class Places:
    """Sampled tokens under the guided distribution and, as a control, the base's.

    Places make the chi-square test. Tokens that guidance makes likelier come last, and the draft
    token comes first, where it is known. Their log-ratios r(t) = log p(t) − log base(t) make the
    test that is strongest against the base's distribution: Σ r(t) − E r, over its deviation.
    """

    def __init__(self, reference, seed=0):
        self.reference, self.rng = reference, np.random.default_rng(seed)
        self.places = {"guided": [], "base": []}
        self.ratios = {"guided": [], "base": []}  # of r(t) − E r, and its variance

    def add(self, prefix, token, guidance, start, draft=None):
        """One token. start: length of the prompt. draft: the draft token that was verified."""
        fused, _ = self.reference.step(prefix, guidance, start)
        plain = self.reference.logits(tuple(prefix))[0]
        p, base = (x.double().softmax(-1).numpy() for x in (fused, plain))
        ratio = np.log(p) - np.log(base)
        order = np.argsort(ratio)
        if draft is not None:
            order = np.append(draft, order[order != draft])
        share = self.rng.random()
        for name, q in (("guided", p), ("base", base)):
            self.places[name].append(place(q, token, order, share))
            mean = (q * ratio).sum()
            self.ratios[name].append((ratio[token] - mean, (q * (ratio - mean) ** 2).sum()))

    def __len__(self):
        return len(self.places["guided"])

    def p_value(self, name="guided"):
        """Of the chi-square test that the tokens are drawn from the guided or base distribution."""
        return p_value(self.places[name])

    def z(self, name="guided"):
        """Standard normal if the tokens are drawn from the guided or base distribution."""
        apart, variance = np.array(self.ratios[name]).sum(0)
        return float(apart / variance**0.5)
