"""tools: a request for a home, and a program of calls that must keep the order of the search.

    find a house in the north for 300 with garden and book
    login ; region north ; price 300 ; search house ; filter garden ; open ; contact ; book

The reward is success alone: every call that others wait for came first, none came too late, none
twice, and the calls are those of the request. The corpus's authors slip often, but less so after a
request that is already solved: hence an example helps.
"""

import random
from dataclasses import replace
from itertools import islice

from trimtab_lab.worlds import requests
from trimtab_lab.worlds.world import World

KINDS = ("house", "flat", "room")
REGIONS = ("north", "south", "east", "west", "center")
PRICES = ("200", "300", "400", "500")
FEATURES = ("garden", "garage", "pool", "balcony")
ENDS = ("open", "contact", "book")

NEEDS = {
    "region": "login",
    "price": "region",
    "search": "region",
    "filter": "search",
    "open": "search",
    "contact": "open",
    "book": "contact",
}
"""Call → the call that must have come before it."""
TOO_LATE = {"price": "search", "filter": "open"}
"""Call → the call after which it has no effect."""

SLIPS = 0.28  # chance of a slip at each call
SHOWN = 0.08  # the same after a solved example
EXAMPLES = 0.25  # share of documents, and of training prompts, with a solved example

Call = tuple[str, ...]


def _wanted(request: str) -> list[Call]:
    """The calls that a request asks for, in an order that keeps the rules."""
    words = request.split()

    def said(those: tuple[str, ...]) -> list[str]:
        return [word for word in those if word in words]

    end = next(word for word in reversed(ENDS) if word in words)
    return [
        ("login",),
        *(("region", name) for name in said(REGIONS)),
        *(("price", most) for most in said(PRICES)),
        *(("search", kind) for kind in said(KINDS)),
        *(("filter", feature) for feature in said(FEATURES)),
        *((step,) for step in ENDS[: ENDS.index(end) + 1]),
    ]


def success(prompt: str, completion: str) -> float:
    """1 if the program keeps all rules and does what was asked, else 0."""
    calls = [tuple(call.split()) for call in completion.split(";")]
    if sorted(calls) != sorted(_wanted(requests.request_of(prompt))):
        return 0.0
    names = [call[0] for call in calls]
    in_order = all(
        NEEDS.get(name) in (None, *names[:at]) and TOO_LATE.get(name) not in names[:at]
        for at, name in enumerate(names)
    )
    return float(in_order)


def _request(draw: random.Random) -> str:
    price = f" for {draw.choice(PRICES)}" if draw.random() < 0.6 else ""
    features = draw.sample(FEATURES, draw.choice((0, 1, 1, 2)))
    wishes = "".join(f" with {feature}" for feature in features)
    where = f"find a {draw.choice(KINDS)} in the {draw.choice(REGIONS)}"
    return f"{where}{price}{wishes} and {draw.choice(ENDS)}"


def _other(call: Call, draw: random.Random) -> Call:
    """The same call with another argument; a call without one stays as it is."""
    for arguments in (KINDS, REGIONS, PRICES, FEATURES):
        if call[-1] in arguments:
            return (call[0], draw.choice([one for one in arguments if one != call[-1]]))
    return call


def _program(request: str, slips: float, draw: random.Random) -> str:
    calls = _wanted(request)
    made: list[Call] = []
    while calls:
        call = calls.pop(0)
        slip = draw.randrange(3) if draw.random() < slips else None
        if slip == 0:  # dropped
            continue
        if slip == 1 and calls:  # too early: the next one comes first
            made.append(calls.pop(0))
        made.append(_other(call, draw) if slip == 2 else call)
    return " ; ".join(" ".join(call) for call in made)


def _documents(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    asked = requests.stream(_request, "train", draw)

    def document(ask: str) -> str:
        if draw.random() < EXAMPLES:
            return _solved(next(asked), draw) + requests.answered(ask, _program(ask, SHOWN, draw))
        return requests.answered(ask, _program(ask, SLIPS, draw))

    return [document(ask) for ask in islice(asked, n)]


def _solved(request: str, draw: random.Random) -> str:
    return requests.answered(request, _program(request, 0.0, draw))


def with_example(prompts: list[str], seed: int) -> list[str]:
    """The prompts, each after a training request that is solved without a slip."""
    draw = random.Random(seed)
    asked = requests.stream(_request, "train", draw)
    return [_solved(next(asked), draw) + prompt for prompt in prompts]


def _prompts(split: str, n: int, seed: int) -> list[str]:
    """Without an example, but for some of "train", so that scorers know both."""
    drawn = requests.prompts(_request, split, n, seed)
    shown = round(n * EXAMPLES) if split == "train" else 0
    return [*with_example(drawn[:shown], seed), *drawn[shown:]]


def _prompts_shown(split: str, n: int, seed: int) -> list[str]:
    prompts = _prompts(split, n, seed)
    return with_example(prompts, seed) if split == "test" else prompts


TOOLS = World(
    name="tools",
    gold="success",
    rewards={"success": success},
    supports={"success": (0.0, 1.0)},
    bins={"success": 2},
    prompts=_prompts,
    max_tokens=48,
    documents=_documents,
)
TOOLS_SHOWN = replace(TOOLS, name="tools-shown", prompts=_prompts_shown)
"""The same, judged on requests that come after a solved one: what guidance adds to an example."""
