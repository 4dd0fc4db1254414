"""What each decoding method of the literature is here, as plain data.

β is given as a strength: β times the deviation of the scorer's scores over rollouts, which its
checkpoint holds. One ladder of strengths then suits scorers of any scale. A method climbs it until
its mean KL has passed `STOP`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

LADDER = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
QUICK_LADDER = (0.5, 1.0, 2.0, 4.0, 8.0)
STOP = 5.0  # nats per answer
NOTHING = "nothing"
"""A scorer of zeros, for the methods that have none: it leaves the choice of candidates."""


@dataclass(frozen=True)
class Method:
    """A decoding rule and the training of its scorer."""

    name: str
    source: str
    scorer: str | None = None
    """Name of its scorer, which is that of a training in `TRAININGS`."""
    k: int = 10
    mass: float = 1.0
    tail: Literal["truncate", "mean"] = "truncate"
    temperature: float = 1.0
    strengths: tuple[float, ...] | None = None
    """The ladder, if absent."""
    stop: float = STOP
    times: int = 1
    """So many times the answers of others, where efficiency is claimed to a few hundredths."""
    search: Mapping[str, Any] | None = None
    """Fields of trimtab.search.SearchParams, if it searches."""
    rival: Literal["rl", "dpo", "soup"] | None = None
    """How the base itself is tuned instead, see rivals.py."""
    target: Literal["gold", "composed", "dial"] = "gold"
    """What it is after: the world's gold reward, a sum of rewards, or short and long answers."""
    group: Literal["base", "token", "search", "rival", "grid"] = "token"
    worlds: tuple[str, ...] | None = None
    """The only ones it suits; all, if absent."""


@dataclass(frozen=True)
class Training:
    """How a scorer is trained from a world's rollouts."""

    objective: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    pairs: bool = False
    reward: str | None = None
    """The world's gold reward, if absent."""
    refines: str | None = None
    """The training it goes on from, with answers guided by what that one made: see refine.py."""


# A vocabulary head's rows are updated one by one, as their tokens come: a smaller step suits them.
_VOCABULARY = {"learning_rate": 3e-4}
_ILQL = {"expectile": 0.6, "conservative": 0.001}
TRAININGS = {
    "distribution-base": Training("distribution"),
    "distribution-small": Training("distribution", {"layers": 1}),
    "distribution": Training("distribution", {"learning_rate": 7e-4}, refines="distribution-base"),
    "distribution-lean": Training(
        "distribution", {"learning_rate": 7e-4}, refines="distribution-small"
    ),
    "q-distribution-base": Training("q-distribution"),
    "q-distribution": Training(
        "q-distribution", {"learning_rate": 7e-4}, refines="q-distribution-base"
    ),
    "q-distribution-twice": Training(
        "q-distribution", {"learning_rate": 7e-4}, refines="q-distribution"
    ),
    "td-lambda": Training("td-lambda"),
    "bradley-terry": Training("bradley-terry", pairs=True),
    "bradley-terry-full": Training("bradley-terry-full", pairs=True),
    "cd-fudge": Training("cd-fudge"),
    "td-0": Training("td-0"),
    "rad": Training("rad"),
    "fudge": Training("fudge"),
    "soft-value": Training("soft-value"),
    "cd-q": Training("cd-q", _VOCABULARY),
    "ilql": Training("ilql", {**_VOCABULARY, "options": _ILQL}),
    "farma": Training("farma", {**_VOCABULARY, "options": {"weight": 0.1}}, pairs=True),
    "genarm": Training("genarm", {"learning_rate": 5e-4, "options": {"beta": 0.3}}, pairs=True),
}
"""One pass over the rollouts, or over the pairs, as `trimtab_lab.worlds.build` has it."""

SUMS: Mapping[str, Mapping[str, float]] = {
    "reviews": {"sentiment": 0.5, "formality": 0.5},
    "digest": {"attribution": 1 / 3, "main_idea": 1 / 3, "conciseness": 1 / 3},
}
"""World → the rewards that methods of the target `composed` are after, with weights."""
DIALS: Mapping[str, str] = {"reviews": "brevity", "digest": "conciseness"}
"""World → the reward by which a dial makes answers shorter, or longer with a negative β."""
COMPOSED, DIAL = "composed", "dial"


def trainings(world: str) -> dict[str, Training]:
    """Of every scorer that a world may need, by name."""
    parts = {part(reward): Training("td-lambda", reward=reward) for reward in SUMS.get(world, ())}
    dial = {DIAL: Training("distribution", reward=DIALS[world])} if world in DIALS else {}
    return TRAININGS | parts | dial


def rounds(world: str, name: str) -> int:
    """How many trainings a scorer's goes on from."""
    first = trainings(world)[name].refines
    return 0 if first is None else 1 + rounds(world, first)


def part(reward: str) -> str:
    """The name of the value scorer of one reward of a sum."""
    return f"value-{reward}"


FINE = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""Of soft values, which spend more at a strength: at a high β they see the best ends alone."""
GREEDY = (1.0, 2.0, 4.0, 8.0)
SEARCHED = (1.0, 2.0, 4.0)
ONCE = (0.0,)
"""Of a method that has no strength."""
TUNED = (3.0,)
TUNED_ONCE = (2.0,)
TURNS = (-16.0, -8.0, -4.0, -2.0, 2.0, 4.0, 8.0, 16.0)
HEAT_KS = (2, 5, 20)
HEAT_STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)

_VAS = "Han et al. 2024 (VAS)"
_PARGS = "Rashid et al. 2024 (PARGS)"
_ARGS = "Khanov et al. 2024 (ARGS)"
_CD = "Mudgal et al. 2023 (Controlled Decoding)"


_NARROW = ("digest", "tools", "tools-shown", "sums")
"""Of few words, or of two rewards: elsewhere a histogram a token is larger than its backbone."""


def _search(name: str, source: str, strengths: tuple[float, ...], **search: Any) -> Method:
    # Candidates by mass, so that the guided draws inside a search are as good as ours.
    return Method(
        name, source, "td-lambda", 32, 0.99, strengths=strengths, search=search, group="search"
    )


def _ours(name: str, what: str = "", mass: float = 0.99, **fields: Any) -> Method:
    source = "Trimtab: return distribution" + what
    return Method(name, source, name, 32, mass, strengths=FINE, **fields)


_AHEAD: dict[str, Any] = {"worlds": _NARROW, "mass": 0.95}
"""Where a single slip decides, unlikely tokens seldom are worth their risk."""


_LISTED = (
    Method("base", "π0 itself", strengths=ONCE, group="base"),
    Method("top-k 10", "Fan et al. 2018", strengths=ONCE),
    Method("top-k 50", "Fan et al. 2018", k=50, strengths=ONCE),
    Method("args-greedy", _ARGS, "bradley-terry-full", temperature=0.0, strengths=GREEDY),
    Method("args", _ARGS + ", sampled", "bradley-terry-full"),
    Method("pargs", _PARGS, "bradley-terry", stop=3 * STOP),
    Method(
        "pargs-greedy", _PARGS + ", PARGS-G", "bradley-terry", temperature=0.0, strengths=GREEDY
    ),
    Method("vas", _VAS + ", tail = mean", "td-lambda", 20, tail="mean"),
    Method("vas-cut", _VAS + ", tail cut", "td-lambda", 20),
    Method("vas-td0", _VAS + ", TD(0)", "td-0", 20, tail="mean"),
    Method("cd-fudge", _CD, "cd-fudge", 20, tail="mean"),
    Method("fudge", "Yang & Klein 2021 (FUDGE)", "fudge", 20),
    Method("rad", "Deng & Raffel 2023 (RAD)", "rad", 20),
    Method("cd-q", _CD + ", CD-Q", "cd-q", 256),
    Method("ilql", "Snell et al. 2022 (ILQL)", "ilql", 256),
    Method("farma", "Rashid et al. 2025 (FaRMA)", "farma", 256),
    Method("genarm", "Xu et al. 2024 (GenARM)", "genarm", 256),
    Method("soft-value", "Zhou et al. 2025 (Q♯), one β", "soft-value", 32, 0.99),
    Method("value-mass", _VAS + ", candidates by mass", "td-lambda", 32, 0.99),
    _ours("distribution-small", ", one layer"),
    _ours("distribution-base", ", base answers alone"),
    _ours("distribution", tail="mean", times=4),
    _ours("distribution-lean", ", one layer, refined", tail="mean", times=4),
    _ours("q-distribution-base", " of every next token, base answers alone", **_AHEAD),
    _ours("q-distribution", " of every next token", times=4, **_AHEAD),
    _ours("q-distribution-twice", ", refined twice", times=4, **_AHEAD),
    *(
        _search(f"best-of-{n}", "Stiennon et al. 2020", ONCE, method="best_of_n", n=n)
        for n in (4, 16, 64, 128)
    ),
    _search("blockwise", _CD + ", block-wise", ONCE, method="blockwise", n=16, block=8),
    _search("beam", "value-guided beam over blocks", ONCE, method="beam", width=4, expand=4),
    _search("smc", "Zhao et al. 2024 (twisted SMC)", SEARCHED, method="smc", particles=16),
    _search("mcts", "Liu et al. 2023 (PPO-MCTS)", SEARCHED[-1:], method="mcts", simulations=16),
    Method("rl", "RLOO on the exact reward (TRL)", strengths=TUNED, rival="rl", group="rival"),
    Method("dpo", "Rafailov et al. 2023 (DPO)", strengths=TUNED, rival="dpo", group="rival"),
    Method("dial", _VAS + ", personalisation", DIAL, 32, 0.99, strengths=TURNS, target="dial"),
    Method(
        "composition", _VAS + ", values added up", COMPOSED, 32, 0.99, target="composed", times=4
    ),
    Method(
        "summed-rl",
        "RLOO on the summed reward, as Mo-PPO",
        strengths=TUNED_ONCE,
        rival="rl",
        target="composed",
        group="rival",
        times=4,
    ),
    Method(
        "rewarded-soup",
        "Ramé et al. 2023 (Rewarded Soups)",
        strengths=TUNED_ONCE,
        rival="soup",
        target="composed",
        group="rival",
        times=4,
    ),
)
METHODS: dict[str, Method] = {method.name: method for method in _LISTED}
QUICK = ("base", "top-k 10", "args", "pargs", "vas", "vas-cut", "value-mass")


def heat_map(method: Method) -> list[Method]:
    """The same method with other k, for reward over k × β."""
    return [
        replace(method, name=f"{method.name} k={k}", k=k, strengths=HEAT_STRENGTHS, group="grid")
        for k in HEAT_KS
    ]
