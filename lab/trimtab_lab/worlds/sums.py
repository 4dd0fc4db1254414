"""sums: the sum of two numbers, digit by digit with the working shown; right at the end or not.

    4 7 0 8 + 2 8 9 1
    8 + 1 + 0 = 0 9 , 0 + 9 + 0 = 0 9 , 7 + 8 + 0 = 1 5 , 4 + 2 + 1 = 0 7 . 0 7 5 9 9

Each column, from the right: its digits, the carry in, the carry out and the digit of the sum. The
corpus's columns slip at a constant rate, and a slip is carried on faithfully.
"""

import random
from itertools import islice

from trimtab_lab.worlds import requests
from trimtab_lab.worlds.world import World

COLUMNS = 4
SLIP = 0.28  # of a column
MISCOPY = 0.06  # of one digit, from the working to the answer


def correct(prompt: str, completion: str) -> float:
    """1 if the number after the working is the sum, else 0."""
    terms = requests.request_of(prompt).replace(" ", "").split("+")
    answer = completion.rpartition(".")[2].replace(" ", "")
    return float(answer.isdecimal() and int(answer) == sum(map(int, terms)))


def _request(draw: random.Random) -> str:
    terms = (draw.randrange(10 ** (COLUMNS - 1), 10**COLUMNS) for _ in range(2))
    return " + ".join(" ".join(str(term)) for term in terms)


def _beside(digit: int, draw: random.Random) -> int:
    return (digit + draw.choice((-1, 1))) % 10


def _answer(request: str, draw: random.Random) -> str:
    left, right = ([int(digit) for digit in term.split()] for term in request.split("+"))
    carry, columns, digits = 0, [], []
    for top, bottom in zip(reversed(left), reversed(right), strict=True):
        slip = draw.randrange(4) if draw.random() < SLIP else None
        a = _beside(top, draw) if slip == 0 else top
        b = _beside(bottom, draw) if slip == 1 else bottom
        out, digit = divmod(a + b + carry, 10)
        digit = _beside(digit, draw) if slip == 2 else digit
        out = 1 - out if slip == 3 else out
        columns.append(f"{a} + {b} + {carry} = {out} {digit}")
        digits.append(digit)
        carry = out
    digits.append(carry)
    if draw.random() < MISCOPY:
        digits[draw.randrange(len(digits))] = draw.randrange(10)
    return f"{' , '.join(columns)} . {' '.join(map(str, reversed(digits)))}"


def _documents(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    asked = requests.stream(_request, "train", draw)
    return [requests.answered(ask, _answer(ask, draw)) for ask in islice(asked, n)]


SUMS = World(
    name="sums",
    gold="correct",
    rewards={"correct": correct},
    supports={"correct": (0.0, 1.0)},
    bins={"correct": 2},
    prompts=lambda split, n, seed: requests.prompts(_request, split, n, seed),
    max_tokens=56,
    documents=_documents,
)
