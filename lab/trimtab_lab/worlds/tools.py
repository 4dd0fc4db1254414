"""tools: a request for a home, and a program of calls in a valid order.

    find a house in the north for 300 with garden and book
    login ; region north ; price 300 ; search house ; filter garden ; open ; contact ; book

The reward is success: the calls are those of the request, each once; every call comes after the
calls that it needs, and none comes too late. The corpus has many mistakes, but fewer after a solved
request, so an example in the prompt helps.
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
"""Call → the call that must come before it."""
TOO_LATE = {"price": "search", "filter": "open"}
"""Call → the call after which it has no effect."""

SLIPS = 0.28  # chance of a mistake at each call
SLIPS_AFTER_EXAMPLE = 0.08  # the same after a solved example
EXAMPLES = 0.25  # share of documents, and of training prompts, with a solved example

Call = tuple[str, ...]


def _required(request: str) -> list[Call]:
    """The calls of a request, in a valid order."""
    words = request.split()

    def mentioned(names: tuple[str, ...]) -> list[str]:
        return [word for word in names if word in words]

    end = next(word for word in reversed(ENDS) if word in words)
    return [
        ("login",),
        *(("region", name) for name in mentioned(REGIONS)),
        *(("price", price) for price in mentioned(PRICES)),
        *(("search", kind) for kind in mentioned(KINDS)),
        *(("filter", feature) for feature in mentioned(FEATURES)),
        *((step,) for step in ENDS[: ENDS.index(end) + 1]),
    ]


def success(prompt: str, completion: str) -> float:
    """1 if the program has the calls of the request in a valid order, else 0."""
    calls = [tuple(call.split()) for call in completion.split(";")]
    if sorted(calls) != sorted(_required(requests.request_of(prompt))):
        return 0.0
    names = [call[0] for call in calls]
    in_order = all(
        NEEDS.get(name) in (None, *names[:at]) and TOO_LATE.get(name) not in names[:at]
        for at, name in enumerate(names)
    )
    return float(in_order)


def _request(rng: random.Random) -> str:
    price = f" for {rng.choice(PRICES)}" if rng.random() < 0.6 else ""
    features = rng.sample(FEATURES, rng.choice((0, 1, 1, 2)))
    wishes = "".join(f" with {feature}" for feature in features)
    where = f"find a {rng.choice(KINDS)} in the {rng.choice(REGIONS)}"
    return f"{where}{price}{wishes} and {rng.choice(ENDS)}"


def _other(call: Call, rng: random.Random) -> Call:
    """The same call with another argument; a call without arguments is not changed."""
    for arguments in (KINDS, REGIONS, PRICES, FEATURES):
        if call[-1] in arguments:
            return (call[0], rng.choice([one for one in arguments if one != call[-1]]))
    return call


def _program(request: str, slips: float, rng: random.Random) -> str:
    calls = _required(request)
    made: list[Call] = []
    while calls:
        call = calls.pop(0)
        slip = rng.randrange(3) if rng.random() < slips else None
        if slip == 0:  # dropped
            continue
        if slip == 1 and calls:  # swapped with the next call
            made.append(calls.pop(0))
        made.append(_other(call, rng) if slip == 2 else call)
    return " ; ".join(" ".join(call) for call in made)


def _documents(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    stream = requests.stream(_request, "train", rng)

    def document(text: str) -> str:
        if rng.random() < EXAMPLES:
            example = _solved(next(stream), rng)
            return example + requests.answered(text, _program(text, SLIPS_AFTER_EXAMPLE, rng))
        return requests.answered(text, _program(text, SLIPS, rng))

    return [document(text) for text in islice(stream, n)]


def _solved(request: str, rng: random.Random) -> str:
    return requests.answered(request, _program(request, 0.0, rng))


def with_example(prompts: list[str], seed: int) -> list[str]:
    """The prompts, each after a training request with a correct solution."""
    rng = random.Random(seed)
    stream = requests.stream(_request, "train", rng)
    return [_solved(next(stream), rng) + prompt for prompt in prompts]


def _prompts(split: str, n: int, seed: int) -> list[str]:
    """Prompts without an example; in "train", some have one, so that scorers see both kinds."""
    prompts = requests.prompts(_request, split, n, seed)
    count = round(n * EXAMPLES) if split == "train" else 0
    return [*with_example(prompts[:count], seed), *prompts[count:]]


def _prompts_with_example(split: str, n: int, seed: int) -> list[str]:
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
TOOLS_WITH_EXAMPLE = replace(TOOLS, name="tools-with-example", prompts=_prompts_with_example)
"""The same world, tested on requests after a solved one: the gain of guidance beside an example."""
