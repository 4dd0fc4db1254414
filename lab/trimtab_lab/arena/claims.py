"""The claims of the papers about their methods, as data, and tests of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from trimtab_lab.arena.after import After
from trimtab_lab.arena.board import EXACT_BEST_OF, ORACLE, Board
from trimtab_lab.arena.frontier import Floats, best_of
from trimtab_lab.arena.methods import SUMS
from trimtab_lab.arena.runs import Run
from trimtab_lab.arena.stats import at_kl, holm, paired

LEVEL = 0.05
_EXACT = {ORACLE.format(n): n for n in EXACT_BEST_OF}
"""best-of-N by the reward itself, which a claim may name as the worse one; by N."""


@dataclass(frozen=True)
class Claim:
    """A claim about two methods, and the settings at which they are compared."""

    better: str
    worse: str
    source: str
    compared: Literal[
        "equal KL",
        "best settings",
        "best up to 3 nats",
        "best and last setting",
        "diversity of ten answers",
        "ranks of a good answer",
    ] = "equal KL"
    relation: Literal[">", "≈"] = ">"
    factor: float = 1.0
    """The better one is at least `factor` times the other."""
    world: str | None = None
    """The only world of the claim; None: all."""


_TABLE_1 = "PARGS, Table 1"
_FIGURE_7 = "VAS, Figure 7"
_VARIED: Literal["diversity of ten answers"] = "diversity of ten answers"
_RANKED: Literal["ranks of a good answer"] = "ranks of a good answer"
_WITH_EXAMPLE = "tools-with-example"
CLAIMS = (
    *(
        Claim("pargs", worse, source, compared)
        for compared in ("best settings", "equal KL")
        for worse, source in (
            *((worse, _TABLE_1) for worse in ("args", "cd-fudge", "top-k 10")),
            ("rad", "PARGS, rebuttal to its reviews"),
        )
    ),
    Claim("pargs", "pargs", "PARGS, Table 13: falls again at large β", "best and last setting"),
    Claim("pargs", "rl", _TABLE_1, "best settings", "≈"),
    Claim("pargs", "dpo", _TABLE_1, "best settings"),
    *(Claim("pargs", worse, "PARGS, Table 5", _VARIED) for worse in ("top-k 10", "dpo")),
    *(
        Claim(better, "base", "ours: a review of PARGS asks for ranks", _RANKED)
        for better in ("pargs", "args", "cd-fudge", "rad", "vas", "cd-q", "rl", "dpo")
    ),
    *(
        Claim("pargs", worse, "ours: a review of PARGS asks for ranks", _RANKED)
        for worse in ("args", "cd-fudge", "rad", "dpo")
    ),
    *(
        Claim(better, worse, "ours: beside a sharper base", "best settings")
        for better in ("pargs", "vas")
        for worse in ("greedy", "temperature", "top-p")
    ),
    *(
        Claim(better, worse, "ours: VAS on top of others", "best settings")
        for better, worse in (
            ("vas-greedy", "greedy"),
            ("vas at 0.7", "temperature"),
            ("vas at top-p 0.9", "top-p"),
            ("vas on rl", "rl"),
            ("vas on dpo", "dpo"),
        )
    ),
    Claim("vas", "vas-cut", "VAS, Figure 10: the tail"),
    Claim("vas", "vas-td0", "VAS, Figure 10: λ"),
    Claim("vas", "args", "ours: VAS has no comparison with ARGS"),
    Claim("vas", "fudge", "VAS, Table 3"),
    Claim("vas", "base", "VAS, Table 3: SFT", "best settings"),
    Claim("vas", "rl", "VAS, Table 3: PPO"),
    Claim("vas", "dpo", "VAS, Figure 3"),
    *(
        Claim(better, worse, "VAS, Table 4: more data")
        for better, worse in (
            ("vas", "vas-half"),
            ("vas-half", "vas-quarter"),
            ("vas-quarter", "vas-eighth"),
        )
    ),
    *(
        Claim(better, worse, "VAS, Figure 11: larger scorers")
        for better, worse in (("vas", "vas-two-layers"), ("vas-two-layers", "vas-one-layer"))
    ),
    Claim("vas-one-layer", "base", "VAS, Figure 11: small scorers still help", "best settings"),
    *(
        Claim(
            better, "base", "VAS, section 3.4: tool use", "best settings", factor=1.6, world="tools"
        )
        for better in ("vas", "distribution", "q-distribution")
    ),
    *(
        Claim(
            better,
            "base",
            "VAS, section 3.4: adds to an example",
            "best settings",
            world=_WITH_EXAMPLE,
        )
        for better in ("vas", "distribution", "q-distribution")
    ),
    *(
        Claim(
            "reward-default",
            worse,
            source,
            "best up to 3 nats",
            factor=factor,
            world="instructions",
        )
        for worse, factor, source in (
            ("base", 1.5, "ours: success by known rules"),
            (ORACLE.format(4), 1.0, "ours: at a quarter of its FLOPs"),
        )
    ),
    Claim("reward-default at 0.7", "base at 0.7", "ours: as people sample", "best settings"),
    Claim(
        "distribution-small", "base", "VAS, Figure 11: small scorers still help", "best settings"
    ),
    Claim("vas", "best-of-128", "VAS, Table 3", "best settings", "≈"),
    Claim("cd-fudge", "cd-q", "Controlled Decoding, Fig. 2"),
    Claim("blockwise", "cd-fudge", "Controlled Decoding, Fig. 2", "best settings"),
    *(
        Claim("composition", worse, _FIGURE_7)
        for worse in ("rewarded-soup", "summed-rl", "summed-rl-middle")
    ),
    Claim("summed-rl-middle", "summed-rl", _FIGURE_7 + ": its collapse", "best settings"),
    *(
        Claim("composition", f"vas-{reward}", "ours: all values against one", world=world)
        for world, rewards in SUMS.items()
        for reward in rewards
    ),
    Claim("value-mass", "vas-cut", "ours: mass against k"),
    Claim("distribution", "vas", "ours"),
    Claim("distribution-base", "value-mass", "ours: distribution against mean"),
    Claim("distribution", "distribution-base", "ours: refined on guided answers"),
    Claim("q-distribution-base", "distribution-base", "ours: read before the token"),
    Claim("q-distribution", "q-distribution-base", "ours: refined on guided answers"),
    Claim("q-distribution-twice", "q-distribution", "ours: refined again"),
    Claim("q-distribution", "best-of-128", "ours", "best settings"),
    Claim("distribution", "soft-value", "ours: one head for every β"),
    Claim("distribution", "best-of-128", "ours", "best settings"),
    Claim("distribution-lean", "distribution-small", "ours: refined on guided answers"),
    Claim("distribution-lean", "best-of-128", "ours", "best settings"),
    *(
        Claim(f"{name}-default", name, "ours: the defaults of a request", relation="≈")
        for name in ("distribution", "distribution-lean", "q-distribution", "q-distribution-twice")
    ),
    Claim("probe-refined", "probe-distribution", "ours: refined on guided answers"),
    Claim("probe-refined-all", "probe-refined", "ours: the whole vocabulary", relation="≈"),
)


def test(boards: Sequence[Board], world: str, after: After) -> list[dict[str, Any]]:
    """Test every claim whose methods were run: the paired difference, and Holm's p over all claims.

    Args:
        boards: of each target; both methods of a claim are on one of them.
        world: name of the world.
        after: what was measured of the methods of the first board after all settings.
    """
    rows = []
    measured: dict[str, Mapping[str, Floats]]
    measured = {_VARIED: after.diversity, _RANKED: after.ranks}
    for board in boards:
        for claim in CLAIMS:
            sides: tuple[Floats, Floats] | None = None
            if claim.compared in (_VARIED, _RANKED):
                known = measured.get(claim.compared, {}) if board is boards[0] else {}
                if {claim.better, claim.worse} <= set(known):
                    sides = known[claim.better], known[claim.worse]
            elif claim.world in (None, world):
                sides = _sides(board, claim)
            if sides is not None:
                better, worse = sides
                result = paired(better, claim.factor * worse, read=claim.compared == "equal KL")
                rows.append({**asdict(claim), **result.as_dict()})
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row |= {"p_holm": p, "verdict": _verdict(row, p)}
    return rows


def _verdict(row: Mapping[str, Any], p: float) -> str:
    if row["relation"] == "≈":
        return "no difference found" if row["low"] <= 0 <= row["high"] else "they differ"
    if p < LEVEL:
        return "reproduced"
    return "reversed" if row["high"] < 0 else "not significant"


def _sides(board: Board, claim: Claim) -> tuple[Floats, Floats] | None:
    """The rewards of both sides of a claim, [prompts] each; None if they cannot be compared."""
    if claim.worse in _EXACT:
        ours, n = _best(board, claim.better, claim.compared), _EXACT[claim.worse]
        enough = n <= board.base_samples.shape[1] // 2
        return (ours, best_of(board.base_samples, n)[0]) if ours is not None and enough else None
    runs = [board.methods.get(name, []) for name in (claim.better, claim.worse)]
    if not all(runs):
        return None
    if claim.compared == "equal KL":
        return _equal_kl(board, runs)
    better, worse = (_best(board, one, claim.compared) for one in (claim.better, claim.worse))
    if claim.compared == "best and last setting":
        worse = runs[1][-1].reward(board.gold)
    return None if better is None or worse is None else (better, worse)


def _best(board: Board, name: str, compared: str) -> Floats | None:
    """The rewards of a method's best setting, [prompts]; None if it has none."""
    runs = board.methods.get(name, [])
    if compared == "best up to 3 nats":
        runs = [run for run in runs if run.spent.mean() <= 3.0]
    rewards = [run.reward(board.gold) for run in runs]
    return max(rewards, key=lambda one: float(one.mean())) if rewards else None


def _equal_kl(board: Board, runs: Sequence[Sequence[Run]]) -> tuple[Floats, Floats] | None:
    """Both sides at the board's KL; if one side has a single setting, at that setting's KL."""
    if not all(np.isfinite(run.spent).all() for side in runs for run in side):
        return None
    own = [float(side[0].spent.mean()) for side in runs if len(side) == 1]
    if len(own) == len(runs):
        return None
    kl = own[0] if own else board.kl
    zero = (board.base_reward, np.zeros_like(board.base_reward))
    ends = [
        at_kl([zero, *((run.reward(board.gold), run.spent) for run in side)], kl) for side in runs
    ]
    return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])
