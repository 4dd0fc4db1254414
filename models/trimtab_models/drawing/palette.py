"""One colour for each method, the same in every plot; related methods share a hue.

Families: our own methods are blue, values green, learned rewards red to orange, the reward itself
ochre, search violet, a tuned base pink, and the base grey. Within a family, shades alternate in
lightness. Every colour's relative luminance lies between 0.12 and 0.30, so that its contrast to a
white page and to a dark one (#0d1117) is at least 3 to 1 (WCAG 2.2, graphical objects).
"""

INK = "#757c85"
"""Axes and words: 4.2 to 1 on both kinds of pages."""

FAMILIES = {
    "ours": {
        "distribution": "#037ac0",
        "distribution-lean": "#129db5",
        "distribution-base": "#335ebf",
        "distribution-small": "#008bbe",
        "distribution-default": "#625ac4",
        "distribution-lean-default": "#1475ce",
        "q-distribution": "#129bbe",
        "q-distribution-base": "#4559bf",
        "q-distribution-twice": "#1088c8",
        "q-distribution-default": "#087988",
        "q-distribution-twice-default": "#3571d0",
        "distribution-td": "#0699c8",
        "gains": "#5355bd",
        "gains-own": "#0699c8",
        "gains-refined": "#007990",
        "gains-six": "#3280dd",
        "probe": "#0285da",
        "probe-all": "#007990",
        "probe-distribution": "#496dd1",
        "probe-refined": "#0f97d2",
        "probe-refined-all": "#02717b",
        "probe-soft": "#3280dd",
        "probe at 0.7": "#007797",
    },
    "values": {
        "td-lambda": "#0d8b50",
        "vas-cut": "#60a03b",
        "value-mass": "#0a7557",
        "value-mean": "#309748",
        "td-0": "#0a7d6c",
        "td-1": "#0c8a5a",
        "cd-fudge": "#54a245",
        "fudge": "#0a745c",
        "rad": "#189951",
        "cd-q": "#467d00",
        "ilql": "#008a61",
        "soft-value": "#47a34e",
        "soft-td": "#0e7461",
        "q-exact": "#10985d",
        "q-sampled": "#3a7f17",
        "dueling-q": "#0d8969",
        "value-advantage": "#38a457",
        "composition": "#487101",
        "dial": "#0f9767",
        "vas-greedy": "#467e07",
        "vas at 0.7": "#269889",
        "vas at top-p 0.9": "#4b8b35",
        "vas on rl": "#089c6b",
        "vas on dpo": "#248e24",
        "vas-eighth": "#4e7b2f",
        "vas-quarter": "#08902c",
        "vas-half": "#1f7d6b",
        "vas-one-layer": "#479a3b",
        "vas-two-layers": "#078144",
        "vas-attribution": "#699726",
        "vas-main_idea": "#358c41",
        "vas-conciseness": "#089c74",
        "vas-sentiment": "#468b23",
        "vas-formality": "#307d4f",
    },
    "rewards": {
        "bradley-terry": "#c2460d",
        "pargs-greedy": "#e15a52",
        "bradley-terry-full": "#a14906",
        "args-greedy": "#d25031",
        "plackett-luce": "#a05509",
        "genarm": "#bf4a00",
        "farma": "#e05b4b",
    },
    "the reward itself": {
        "reward-default": "#8f7000",
        "reward-mean": "#ba7f00",
        "reward-cut": "#72630a",
        "reward-vas": "#a1790c",
        "reward-pargs": "#736f0b",
        "reward-default at 0.7": "#8c7200",
    },
    "search": {
        "best-of-4": "#924fc3",
        "best-of-16": "#9b6ee9",
        "best-of-64": "#8e3eae",
        "best-of-128": "#995ed5",
        "blockwise": "#993ea9",
        "beam": "#964dc0",
        "smc": "#9f6ce7",
        "mcts": "#913dab",
    },
    "tuned": {
        "rl": "#be3a7e",
        "dpo": "#d257a9",
        "summed-rl": "#b32968",
        "rewarded-soup": "#c94891",
        "summed-rl-middle": "#c95c8a",
    },
    "base": {
        "base": "#70757c",
        "top-k 10": "#888c94",
        "top-k 50": "#5f636a",
        "base at 0.7": "#7c8088",
        "greedy": "#806c59",
        "temperature": "#6a8b9c",
        "top-p": "#877599",
    },
}
"""Family → method or objective → colour."""

SAME = {
    "vas": "td-lambda",
    "vas-td0": "td-0",
    "pargs": "bradley-terry",
    "args": "bradley-terry-full",
    # The names of the enumerated world:
    "top-k": "top-k 10",
    "VAS": "td-lambda",
    "VAS, tail cut": "vas-cut",
    "FUDGE": "fudge",
    "CD, all tokens": "cd-q",
    "soft value, all tokens": "soft-value",
    "soft value, k = 2": "soft-td",
    "PARGS": "bradley-terry",
    "PARGS-G": "pargs-greedy",
    "ARGS": "bradley-terry-full",
    "ARGS (greedy)": "args-greedy",
    "best-of-N": "best-of-4",
}
"""Names with the colour of another: a method has that of the objective that trains its scorer."""

SHADES = ("#037ac0", "#c2460d", "#0d8b50", "#924fc3", "#a1790c", "#be3a7e")
"""For what is no method, such as rewards or devices: by place."""


def family(name: str) -> str:
    """The family of a method or an objective.

    Raises:
        KeyError: it is in no family; add it to `FAMILIES`.
    """
    for kind, shades in FAMILIES.items():
        if SAME.get(name, name) in shades:
            return kind
    raise KeyError(name)


def colour(name: str) -> str:
    """The colour of a method or an objective.

    Raises:
        KeyError: it has none; add it to `FAMILIES`.
    """
    return FAMILIES[family(name)][SAME.get(name, name)]
