"""sums: the sum of two numbers, digit by digit with all steps; the reward is for the right result.

    4 7 0 8 + 2 8 9 1
    8 + 1 + 0 = 0 9 , 0 + 9 + 0 = 0 9 , 7 + 8 + 0 = 1 5 , 4 + 2 + 1 = 0 7 . 0 7 5 9 9

Each column, from the right: its digits, the carry in, the carry out and the digit of the sum. The
columns of the corpus have mistakes at a constant rate, and later columns use the mistaken values.
"""

import random

from trimtab_lab.worlds import requests
from trimtab_lab.worlds.world import World

COLUMNS = 4
SLIP = 0.28  # chance of a mistake in a column
MISCOPY = 0.06  # chance of one wrong digit between the steps and the answer


def correct(prompt: str, completion: str) -> float:
    """1 if the number after the steps is the sum, else 0."""
    terms = requests.request_of(prompt).replace(" ", "").split("+")
    answer = completion.rpartition(".")[2].replace(" ", "")
    return float(answer.isdecimal() and int(answer) == sum(map(int, terms)))


def _request(rng: random.Random) -> str:
    terms = (rng.randrange(10 ** (COLUMNS - 1), 10**COLUMNS) for _ in range(2))
    return " + ".join(" ".join(str(term)) for term in terms)


def _beside(digit: int, rng: random.Random) -> int:
    return (digit + rng.choice((-1, 1))) % 10


def _answer(request: str, rng: random.Random) -> str:
    left, right = ([int(digit) for digit in term.split()] for term in request.split("+"))
    carry, columns, digits = 0, [], []
    for top, bottom in zip(reversed(left), reversed(right), strict=True):
        slip = rng.randrange(4) if rng.random() < SLIP else None
        a = _beside(top, rng) if slip == 0 else top
        b = _beside(bottom, rng) if slip == 1 else bottom
        out, digit = divmod(a + b + carry, 10)
        digit = _beside(digit, rng) if slip == 2 else digit
        out = 1 - out if slip == 3 else out
        columns.append(f"{a} + {b} + {carry} = {out} {digit}")
        digits.append(digit)
        carry = out
    digits.append(carry)
    if rng.random() < MISCOPY:
        digits[rng.randrange(len(digits))] = rng.randrange(10)
    return f"{' , '.join(columns)} . {' '.join(map(str, reversed(digits)))}"


SUMS = World(
    name="sums",
    gold="correct",
    rewards={"correct": correct},
    supports={"correct": (0.0, 1.0)},
    bins={"correct": 2},
    prompts=lambda split, n, seed: requests.prompts(_request, split, n, seed),
    max_tokens=56,
    documents=lambda n, seed: requests.documents(_request, _answer, n, seed),
)
