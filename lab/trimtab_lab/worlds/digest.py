"""digest: a one-line summary of five facts; its claims are true, short, and name the main thing.

    summarize mill:closes school:hires mill:expands port:reopens zoo:moves
    mill expands and zoo moves

A fact is a thing and an event; two of the five facts are about the same thing, the main one. The
summaries of the corpus often omit it, have any length, and claim things that are not in the facts.
"""

import random
from collections import Counter

from trimtab_lab.worlds import requests
from trimtab_lab.worlds.world import World

THINGS = (
    "mill", "school", "bridge", "museum", "market", "harbor", "library", "theater", "zoo", "port"
)  # fmt: skip
EVENTS = (
    "closes", "opens", "hires", "expands", "burns", "moves", "wins", "reopens", "floods", "shrinks"
)  # fmt: skip
FIELDS = (THINGS, EVENTS)
ASK = "summarize"

CLAIMS = (1, 2, 2, 3, 3, 4)  # of a summary in the corpus
INVENTED = 0.35  # chance that a claim of the corpus is untrue

Statement = tuple[str, ...]


def _claims(text: str) -> list[Statement]:
    return [tuple(claim.split()) for claim in text.split(" and ")]


def facts(request: str) -> list[Statement]:
    """The facts of a request."""
    return [tuple(fact.split(":")) for fact in request.removeprefix(ASK).split()]


def attribution(prompt: str, completion: str) -> float:
    """Share of the claims that are among the facts."""
    known, claims = facts(requests.request_of(prompt)), _claims(completion)
    return sum(claim in known for claim in claims) / len(claims)


def main_idea(prompt: str, completion: str) -> float:
    """1 if a claim is about the main thing, else 0."""
    things = Counter(fact[0] for fact in facts(requests.request_of(prompt)))
    [(main, _)] = things.most_common(1)
    return float(any(claim[:1] == (main,) for claim in _claims(completion)))


def conciseness(prompt: str, completion: str) -> float:
    """1 for one claim of two words, a third less for each further claim, at least 0."""
    words = sum(map(len, _claims(completion)))
    return max(0.0, min(1.0, 1.0 - (words - 2) / 6))


def gold(prompt: str, completion: str) -> float:
    """The mean of the three."""
    parts = (attribution, main_idea, conciseness)
    return sum(part(prompt, completion) for part in parts) / len(parts)


def _request(rng: random.Random) -> str:
    main, *others = rng.sample(THINGS, 4)
    events = rng.sample(EVENTS, 5)
    things = (main, main, *others)
    listed = [f"{thing}:{event}" for thing, event in zip(things, events, strict=True)]
    return f"{ASK} {' '.join(rng.sample(listed, len(listed)))}"


def _invented(claim: Statement, rng: random.Random) -> Statement:
    field = rng.randrange(len(FIELDS))
    return (*claim[:field], rng.choice(FIELDS[field]), *claim[field + 1 :])


def _summary(request: str, rng: random.Random) -> str:
    chosen = rng.sample(facts(request), rng.choice(CLAIMS))
    claims = [_invented(c, rng) if rng.random() < INVENTED else c for c in chosen]
    return " and ".join(" ".join(claim) for claim in claims)


_REWARDS = {
    "gold": gold,
    "attribution": attribution,
    "main_idea": main_idea,
    "conciseness": conciseness,
}
DIGEST = World(
    name="digest",
    gold="gold",
    rewards=_REWARDS,
    supports=dict.fromkeys(_REWARDS, (0.0, 1.0)),
    bins={"gold": 37, "attribution": 13, "main_idea": 2, "conciseness": 7},
    prompts=lambda split, n, seed: requests.prompts(_request, split, n, seed),
    max_tokens=32,
    documents=lambda n, seed: requests.documents(_request, _summary, n, seed),
    rollout_factors=(8, 0.5),
)
