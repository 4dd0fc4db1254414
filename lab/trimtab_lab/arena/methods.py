"""The decoding methods of the literature, as plain data.

Settings are scaled β: β times the deviation of the scorer's scores over rollouts, which its
checkpoint holds. So one ladder of scaled β fits scorers of any scale. A method goes up the ladder
until its mean KL exceeds `STOP`.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trimtab.params import GuidanceParams
from trimtab_lab.arena.baselines import BASELINES, STUDIES
from trimtab_lab.arena.method import STOP, Method, Training

LADDER = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
QUICK_LADDER = (0.5, 1.0, 2.0, 4.0, 8.0)
NOTHING = "nothing"
"""A scorer of zeros, for methods that only choose candidates."""
REWARD = "reward"
"""The world's own reward as a function scorer, where the world is real (see task.py)."""
REAL = ("everyday", "instructions")
"""The worlds whose base is a real language model."""


# A row of a vocabulary head is updated only when its token occurs, which needs a smaller step.
_VOCABULARY = {"learning_rate": 3e-4}
_PROBE: Mapping[str, Any] = {"probe": {}}
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
    "td-lambda-layers": Training("td-lambda", {"layers": 6, "learning_rate": 1e-4, "epochs": 4}),
    "probe": Training("td-lambda", _PROBE),
    "probe-distribution": Training("distribution", _PROBE),
    "probe-refined": Training("distribution", _PROBE, refines="probe-distribution"),
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
    **STUDIES,
}
"""One epoch over the rollouts or pairs, unless the settings change `trimtab_lab.worlds.build`.
With `World.training`, which a real world has, only `options` of these settings hold, except where
they name a number of layers."""

SUMS: Mapping[str, Mapping[str, float]] = {
    "reviews": {"sentiment": 0.5, "formality": 0.5},
    "digest": {"attribution": 1 / 3, "main_idea": 1 / 3, "conciseness": 1 / 3},
}
"""World → the rewards of the target `composed`, with weights."""
DIALS: Mapping[str, str] = {"reviews": "brevity", "digest": "conciseness"}
"""World → the reward of the target `dial`: answers get shorter, or longer at a negative β."""
COMPOSED, DIAL = "composed", "dial"


def trainings(world: str) -> dict[str, Training]:
    """The training of every scorer that a world may need, by name."""
    parts = {part(reward): Training("td-lambda", reward=reward) for reward in SUMS.get(world, ())}
    dial = {DIAL: Training("distribution", reward=DIALS[world])} if world in DIALS else {}
    return TRAININGS | parts | dial


def rounds(world: str, name: str) -> int:
    """The number of trainings that a scorer's training continues, one after another."""
    first = trainings(world)[name].refines
    return 0 if first is None else 1 + rounds(world, first)


def part(reward: str) -> str:
    """The name of the value scorer of one reward of a sum."""
    return f"value-{reward}"


FINE = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""For soft values, which spend more KL at the same scaled β: at a high β they approach max R."""
GREEDY = (1.0, 2.0, 4.0, 8.0)
SEARCH = (1.0, 2.0, 4.0)
ONCE = (0.0,)
"""For a method without β."""
TUNED = (3.0,)
TUNED_ONCE = (2.0,)
DIAL_SETTINGS = (-16.0, -8.0, -4.0, -2.0, 2.0, 4.0, 8.0, 16.0)
HEAT_KS = (2, 5, 20)
HEAT_SCALED_BETAS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)

_VAS = "Han et al. 2024 (VAS)"
_PARGS = "Rashid et al. 2024 (PARGS)"
_ARGS = "Khanov et al. 2024 (ARGS)"
_CD = "Mudgal et al. 2023 (Controlled Decoding)"


_NARROW = ("digest", "tools", "tools-with-example", "sums")
"""Small vocabulary or few bins: elsewhere one histogram per token is larger than the backbone."""


def _search(name: str, source: str, scaled_betas: tuple[float, ...], **search: Any) -> Method:
    # Candidates by mass, as for our own methods.
    return Method(
        name,
        source,
        "td-lambda",
        32,
        0.99,
        scaled_betas=scaled_betas,
        search=search,
        group="search",
    )


def _ours(name: str, what: str = "", mass: float = 0.99, **fields: Any) -> Method:
    source = "Trimtab: return distribution" + what
    return Method(name, source, name, 32, mass, scaled_betas=FINE, **fields)


_DEFAULT = GuidanceParams()
_DEFAULTS: dict[str, Any] = {"k": _DEFAULT.k, "mass": _DEFAULT.mass, "tail": _DEFAULT.tail}


def _by_default(scorer: str, **fields: Any) -> Method:
    """A return distribution with the candidates and tail of a request that sets none."""
    source = "the same scorer, with the defaults of a request"
    name = f"{scorer}-default"
    return Method(name, source, scorer, scaled_betas=FINE, times=4, **_DEFAULTS, **fields)


_AHEAD: dict[str, Any] = {"worlds": _NARROW, "mass": 0.95}
"""A single mistake decides the reward there, so unlikely tokens are excluded."""


_NO_BETA = 0.01
"""As good as β = 0: what remains is the KL that the cut tail costs."""


def _known(name: str, source: str, **fields: Any) -> Method:
    """A method that the reward itself steers, as a function of the answer so far."""
    return Method(name, source + ", by the reward itself", REWARD, worlds=REAL, **fields)


_SAMPLED: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9}
"""As people sample."""
_CUT: dict[str, Any] = {"scaled_betas": (_NO_BETA, 4.0), "stop": math.inf}
_PROBES = (
    Method("probe", "Trimtab: a probe's value", "probe", **_DEFAULTS),
    Method("probe-all", "the same on the whole vocabulary", "probe", k="all"),
    Method(
        "probe-distribution",
        "Trimtab: a probe's return distribution",
        "probe-distribution",
        scaled_betas=FINE,
        **_DEFAULTS,
    ),
)
_REFINED_PROBES = (
    Method(
        "probe-refined",
        "the same, refined",
        "probe-refined",
        scaled_betas=FINE,
        times=4,
        **_DEFAULTS,
    ),
    Method(
        "probe-refined-all",
        "the same on the whole vocabulary",
        "probe-refined",
        k="all",
        scaled_betas=FINE,
        times=4,
    ),
)
_REAL = (
    _known("reward-default", "Trimtab: the defaults of a request", **_DEFAULTS),
    _known("reward-mean", "Trimtab: k = 32, mass 0.99, tail = mean", k=32, mass=0.99, tail="mean"),
    _known("reward-cut", "the same, tail cut", k=32, mass=0.99, **_CUT),
    _known("reward-vas", _VAS, k=20, tail="mean"),
    _known("reward-pargs", _PARGS, k=10, **_CUT),
    Method(
        "base at 0.7",
        "π0 at temperature 0.7, top-p 0.9",
        scaled_betas=ONCE,
        group="base",
        worlds=REAL,
        **_SAMPLED,
    ),
    _known(
        "reward-default at 0.7",
        "the same, steered by default",
        scaled_betas=(4.0,),
        **_DEFAULTS,
        **_SAMPLED,
    ),
    Method(
        "probe-soft",
        "Trimtab: a probe's return distribution, at higher β",
        "probe-distribution",
        scaled_betas=(4.0, 12.0, 36.0),
        worlds=REAL,
        **_DEFAULTS,
    ),
    Method(
        "probe at 0.7",
        "a probe's value, by default",
        "probe",
        scaled_betas=(4.0,),
        worlds=REAL,
        **_DEFAULTS,
        **_SAMPLED,
    ),
    Method(
        "value-mean",
        _VAS + ", the base's six lowest layers",
        "td-lambda-layers",
        worlds=REAL,
        **_DEFAULTS,
    ),
)
"""Methods of the real worlds alone. Another is one entry here, its scorer one in `TRAININGS`."""

_LISTED = (
    Method("base", "π0 itself", scaled_betas=ONCE, group="base"),
    Method("top-k 10", "Fan et al. 2018", scaled_betas=ONCE),
    Method("top-k 50", "Fan et al. 2018", k=50, scaled_betas=ONCE),
    Method("args-greedy", _ARGS, "bradley-terry-full", temperature=0.0, scaled_betas=GREEDY),
    Method("args", _ARGS + ", sampled", "bradley-terry-full"),
    Method("pargs", _PARGS, "bradley-terry", stop=3 * STOP),
    Method(
        "pargs-greedy", _PARGS + ", PARGS-G", "bradley-terry", temperature=0.0, scaled_betas=GREEDY
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
    _by_default("distribution"),
    _by_default("distribution-lean"),
    _by_default("q-distribution", worlds=_NARROW),
    _by_default("q-distribution-twice", worlds=_NARROW),
    *(
        _search(f"best-of-{n}", "Stiennon et al. 2020", ONCE, method="best_of_n", n=n)
        for n in (4, 16, 64, 128)
    ),
    _search("blockwise", _CD + ", block-wise", ONCE, method="blockwise", n=16, block=8),
    _search("beam", "value-guided beam over blocks", ONCE, method="beam", width=4, expand=4),
    _search("smc", "Zhao et al. 2024 (twisted SMC)", SEARCH, method="smc", particles=16),
    _search("mcts", "Liu et al. 2023 (PPO-MCTS)", SEARCH[-1:], method="mcts", simulations=16),
    Method("rl", "RLOO on the exact reward (TRL)", scaled_betas=TUNED, rival="rl", group="rival"),
    Method("dpo", "Rafailov et al. 2023 (DPO)", scaled_betas=TUNED, rival="dpo", group="rival"),
    Method(
        "dial",
        _VAS + ", personalisation",
        DIAL,
        32,
        0.99,
        scaled_betas=DIAL_SETTINGS,
        target="dial",
    ),
    Method(
        "composition", _VAS + ", values added up", COMPOSED, 32, 0.99, target="composed", times=4
    ),
    Method(
        "summed-rl",
        "RLOO on the summed reward, as Mo-PPO",
        scaled_betas=TUNED_ONCE,
        rival="rl",
        target="composed",
        group="rival",
        times=4,
    ),
    Method(
        "summed-rl-middle",
        "the same after half of its training, Mo-PPO (middle)",
        scaled_betas=TUNED_ONCE,
        rival="rl",
        middle=True,
        target="composed",
        group="rival",
        times=4,
    ),
    Method(
        "rewarded-soup",
        "Ramé et al. 2023 (Rewarded Soups)",
        scaled_betas=TUNED_ONCE,
        rival="soup",
        target="composed",
        group="rival",
        times=4,
    ),
    *(
        Method(
            f"vas-{reward}",
            f"{_VAS}, {reward} alone",
            part(reward),
            32,
            0.99,
            target="composed",
            worlds=(world,),
        )
        for world, rewards in SUMS.items()
        for reward in rewards
    ),
    *BASELINES,
    *_PROBES,
    *_REFINED_PROBES,
    *_REAL,
)
METHODS: dict[str, Method] = {method.name: method for method in _LISTED}
QUICK = ("base", "top-k 10", "args", "pargs", "vas", "vas-cut", "value-mass")
REAL_QUICK = (
    *("base", "top-k 10", "reward-default", "reward-cut", "reward-vas", "reward-pargs"),
    *("base at 0.7", "reward-default at 0.7"),
)
"""Those of a real world that need no training."""
_OURS = ("reward-mean", "probe", "probe-all", "probe-soft", "probe at 0.7")
_LITERATURE = (
    *("top-k 50", "args", "pargs", "vas", "vas-cut", "cd-fudge", "fudge", "rad"),
    *("cd-q", "ilql", "soft-value", "best-of-4", "best-of-16"),
)
REAL_FULL = (*REAL_QUICK, *_OURS, *_LITERATURE)
"""Those of a real world whose scorers are probes, which train in seconds."""
GYM = ("base", "top-k 10", "probe", "probe-all", "vas", "pargs", "cd-fudge", "best-of-4")
"""Those of a generator of reasoning-gym: its verifier says nothing of an unfinished answer."""


def heat_map(method: Method) -> list[Method]:
    """The same method with other values of k, for reward over k × β."""
    return [
        replace(
            method, name=f"{method.name} k={k}", k=k, scaled_betas=HEAT_SCALED_BETAS, group="grid"
        )
        for k in HEAT_KS
    ]
