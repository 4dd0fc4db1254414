"""digest: five facts, and a one-line summary of true claims, of the main thing, in few words.

    summarize mill:closes school:hires mill:expands port:reopens zoo:moves
    mill expands and zoo moves

A fact is a thing and what happens to it; two of the five facts are of one thing, which is what they
are mostly about. The corpus's summaries often miss it, are of any length, and claim what no fact
says.
"""

import random
from collections import Counter
from itertools import islice

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

Claim = tuple[str, ...]


def _claims(text: str) -> list[Claim]:
    return [tuple(claim.split()) for claim in text.split(" and ")]


def facts(request: str) -> list[Claim]:
    """The facts that a request gives."""
    return [tuple(fact.split(":")) for fact in request.removeprefix(ASK).split()]


def attribution(prompt: str, completion: str) -> float:
    """Share of the claims that are among the facts."""
    given, claims = facts(requests.request_of(prompt)), _claims(completion)
    return sum(claim in given for claim in claims) / len(claims)


def main_idea(prompt: str, completion: str) -> float:
    """1 if some claim is of the thing that the facts are mostly about, else 0."""
    things = Counter(fact[0] for fact in facts(requests.request_of(prompt)))
    [(main, _)] = things.most_common(1)
    return float(any(claim[:1] == (main,) for claim in _claims(completion)))


def conciseness(prompt: str, completion: str) -> float:
    """1 for one claim of two words, a third less for each further one, down to 0."""
    words = sum(map(len, _claims(completion)))
    return max(0.0, min(1.0, 1.0 - (words - 2) / 6))


def gold(prompt: str, completion: str) -> float:
    """The mean of the three."""
    parts = (attribution, main_idea, conciseness)
    return sum(part(prompt, completion) for part in parts) / len(parts)


def _request(draw: random.Random) -> str:
    main, *others = draw.sample(THINGS, 4)
    events = draw.sample(EVENTS, 5)
    things = (main, main, *others)
    given = [f"{thing}:{event}" for thing, event in zip(things, events, strict=True)]
    return f"{ASK} {' '.join(draw.sample(given, len(given)))}"


def _invented(claim: Claim, draw: random.Random) -> Claim:
    field = draw.randrange(len(FIELDS))
    return (*claim[:field], draw.choice(FIELDS[field]), *claim[field + 1 :])


def _summary(request: str, draw: random.Random) -> str:
    chosen = draw.sample(facts(request), draw.choice(CLAIMS))
    claims = [_invented(c, draw) if draw.random() < INVENTED else c for c in chosen]
    return " and ".join(" ".join(claim) for claim in claims)


def _documents(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    asked = requests.stream(_request, "train", draw)
    return [requests.answered(ask, _summary(ask, draw)) for ask in islice(asked, n)]


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
    documents=_documents,
    practice=(8, 0.5),
)
