"""Baselines that only sample the base, values on top of other methods, and studies of a value.

Greedy decoding, a temperature and top-p need no scorer. VAS is laid on each of them and on tuned
policies, and its scorer is trained from fewer answers or with fewer layers (VAS, appendix E).
"""

from typing import Any

from trimtab_lab.arena.method import Method, Training

TEMPERATURES = (1 / 0.85, 1 / 0.7, 2.0, 4.0)
"""As strengths, 1/temperature: 0.85, 0.7, 0.5 and 0.25."""
TOP_PS = (0.05, 0.1, 0.2, 0.4)
"""As strengths, 1 − p: 0.95, 0.9, 0.8 and 0.6."""
ONCE = (0.0,)
GREEDY = (1.0, 2.0, 4.0, 8.0)
ON_TOP = (1.0, 2.0, 4.0)
SHARES = {"eighth": 1 / 8, "quarter": 1 / 4, "half": 1 / 2}
LAYERS = {"one-layer": 1, "two-layers": 2}

_VALUE: dict[str, Any] = {"k": 20, "tail": "mean"}
_VAS = "Han et al. 2024 (VAS)"

STUDIES = {
    **{f"td-lambda-{name}": Training("td-lambda", share=share) for name, share in SHARES.items()},
    **{f"td-lambda-{name}": Training("td-lambda", {"layers": n}) for name, n in LAYERS.items()},
}
"""Trainings of VAS's value from a share of the rollouts, or of the base's lowest layers."""

WARPS = (
    Method("greedy", "π0, the most likely token", temperature=0.0, scaled_betas=ONCE, group="base"),
    Method(
        "temperature",
        "π0 at a temperature of 1/strength",
        warps="temperature",
        scaled_betas=TEMPERATURES,
        group="warp",
    ),
    Method(
        "top-p",
        "Holtzman et al. 2019, p = 1 − strength",
        warps="top-p",
        scaled_betas=TOP_PS,
        group="warp",
    ),
)
ON_OTHERS = (
    Method(
        "vas-greedy",
        _VAS + ", greedy",
        "td-lambda",
        temperature=0.0,
        scaled_betas=GREEDY,
        **_VALUE,
    ),
    Method(
        "vas at 0.7",
        _VAS + ", temperature 0.7",
        "td-lambda",
        temperature=0.7,
        scaled_betas=ON_TOP,
        **_VALUE,
    ),
    Method(
        "vas at top-p 0.9",
        _VAS + ", top-p 0.9",
        "td-lambda",
        top_p=0.9,
        scaled_betas=ON_TOP,
        **_VALUE,
    ),
    Method(
        "vas on rl",
        _VAS + " on the policy of rl",
        "td-lambda",
        over="rl",
        scaled_betas=ON_TOP,
        **_VALUE,
    ),
    Method(
        "vas on dpo",
        _VAS + " on the policy of dpo",
        "td-lambda",
        over="dpo",
        scaled_betas=ON_TOP,
        **_VALUE,
    ),
)
SIZES = tuple(
    Method(f"vas-{name}", f"{_VAS}, {what}", f"td-lambda-{name}", **_VALUE)
    for name, what in {
        **{name: f"{share:g} of the answers" for name, share in SHARES.items()},
        **{name: f"{n} of the base's layers" for name, n in LAYERS.items()},
    }.items()
)
BASELINES = (*WARPS, *ON_OTHERS, *SIZES)
