"""The text of a report: report.md, and a summary for the model card."""

from trimtab_models.info import STEERS
from trimtab_models.report.validate import Report
from trimtab_models.validation import Correlation, Credit, Estimate, Known, ValueAgreement
from trimtab_models.validation.known import HALF


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _estimate(value: Estimate | None) -> str:
    return "undefined" if value is None else str(value)


def _verdict(report: Report) -> str:
    if report.prefix_auc.mean.mean < STEERS:
        return (
            f"below {STEERS}: its order on prefixes barely predicts the final order, "
            "do not steer with it"
        )
    return f"not below {STEERS}: its order on prefixes predicts the final order, it can steer"


def _half(report: Report) -> Known:
    return next(known for known in report.known if known.percent == HALF)


def warning(report: Report) -> str | None:
    """One sentence about a scorer that knows nothing beyond the prompt; None for any other.

    A low prefix-AUC is a small effect; this is no evidence of one.
    """
    beyond = _half(report).beyond_prompt
    if beyond is None or beyond.low is None or beyond.low > 0:
        return None
    return (
        f"It will not steer: at half of an answer, its score tells no more about the reward than "
        f"the prompt does (correlation beyond the prompt {beyond}, which is not above 0). Train "
        "on more rollouts, with another objective (gains, if the reward can judge unfinished "
        "answers), or another network."
    )


def _correlation(value: Correlation | None) -> str:
    return "undefined" if value is None else str(value)


def summary(report: Report) -> str:
    """The main figures as a Markdown table, for the model card and the top of report.md."""
    auc, ranks, length = report.prefix_auc, report.reciprocal_rank, report.length
    first, *_, last = auc.positions.values()
    rows = {
        "prefix-AUC": f"**{auc.mean}** ({_verdict(report)})",
        "at 10 % and 100 % of the answer": f"{first.mean:.3f}, {last.mean:.3f}",
    }
    rows["correlation with the reward at 50 %, beyond the prompt"] = _correlation(
        _half(report).beyond_prompt
    )
    if ranks.by_reward is not None:
        chance = _number(ranks.by_reward_chance)
        rows["token mean reciprocal rank"] = f"{ranks.by_reward} (chance {chance})"
    if (values := report.values) is not None and report.is_value:
        rows["value MSE"] = f"{values.mse} (noise {values.noise:.3f}), R² {_number(values.r2)}"
        rows["calibration slope"] = _number(values.slope)
    elif values is not None:
        rows["rank correlation with the mean return of prefixes"] = _number(values.spearman)
    rows["rank correlation with length"] = (
        f"{_number(length.score)} (of the reward {_number(length.reward)})"
    )
    if report.inheritance:
        wins = (f"{part.wins} at {part.fraction:.0%}" for part in report.inheritance)
        rows["continued losing prefixes win"] = ", ".join(wins)
    table = "\n".join(f"| {name} | {figure} |" for name, figure in rows.items())
    head = f"| validation | {report.completions} completions of {report.prompts} prompts |"
    return f"{head}\n|---|---|\n{table}"


def markdown(report: Report) -> str:
    """The whole of report.md."""
    parts = [_order(report), _known(report), _ranks(report), _length(report)]
    if report.credit is not None:
        parts.append(_credit(report.credit))
    if report.values is not None:
        parts.append(_values(report.values, report.is_value))
    if report.inheritance:
        parts.append(_inheritance(report))
    if report.values is None:
        parts.append(
            "## Not measured\n\nValue error, calibration and inheritance need half-completed "
            "answers, each continued several times by the base; pass them with `--completions`."
        )
    chosen = f"Learning rate: {report.rates}.\n\n" if report.rates else ""
    warned = f"**{sentence}**\n\n" if (sentence := warning(report)) else ""
    head = (
        f"# Will this scorer steer?\n\nObjective: {report.objective}; family `{report.family}`. "
        f"Validated on {report.completions} completions of {report.prompts} prompts. Errors are "
        "standard errors by the bootstrap over prompts; n is the number of items in a mean.\n\n"
        f"**Prefix-AUC {report.prefix_auc.mean}, {_verdict(report)}.**\n\n{warned}{chosen}"
        f"{summary(report)}"
    )
    return "\n\n".join([head, *parts]) + "\n"


def _order(report: Report) -> str:
    auc = report.prefix_auc
    rows = "\n".join(f"| {at} | {value} |" for at, value in auc.positions.items())
    compared = (
        "two answers to the same prompt"
        if auc.within_prompts
        else "two answers to different prompts (no prompt here has two answers of unequal reward, "
        "so the figure partly measures which prompts are easy)"
    )
    return (
        "## Order on prefixes\n\n"
        f"Of {compared} with different rewards, how often the better one scores higher when only "
        "the first part of each has been read. 0.5 is chance, 1 perfect. Steering depends on this: "
        "a guided step compares prefixes and never sees whole answers. It is a problem if the mean "
        f"is below {STEERS}, or if the curve is good at 100 % only, which is typical of a reward "
        "model that was trained on whole answers.\n\n![prefix-AUC](report-prefix-auc.png)\n\n"
        f"| read | prefix-AUC |\n|---|---|\n{rows}\n| mean of the ten | **{auc.mean}** |\n\n"
        f"n = {auc.mean.n} pairs."
    )


def _known(report: Report) -> str:
    rows = "\n".join(
        f"| {known.percent} % | {known.reward} | {_correlation(known.beyond_prompt)} |"
        for known in report.known
    )
    return (
        "## How much of the reward is known\n\n"
        "Pearson's correlation of the score of the first part of an answer with the reward of the "
        "whole answer, and the same with each less its mean over the answers to its prompt. The "
        "second counts: what the prompt alone tells is the same for all the candidates of a step. "
        "It is a problem if its interval at 50 % includes 0. Intervals are of 95 %, by the "
        "bootstrap over prompts.\n\n![how much is known](report-known.png)\n\n"
        f"| read | correlation | beyond the prompt |\n|---|---|---|\n{rows}\n\n"
        f"n = {report.known[0].reward.n} completions."
    )


def _ranks(report: Report) -> str:
    ranks = report.reciprocal_rank
    if ranks.by_reward is None and ranks.by_score is None:
        table = "Undefined: no prompt has a completion that is better than its others."
    else:
        table = (
            "| the winner is | mean 1/rank | chance | n (prompts) |\n|---|---|---|---|\n"
            f"| the answer of the highest reward | {_estimate(ranks.by_reward)} | "
            f"{_number(ranks.by_reward_chance)} | {ranks.by_reward.n if ranks.by_reward else 0} |\n"
            f"| the scorer's own final favourite | {_estimate(ranks.by_score)} | "
            f"{_number(ranks.by_score_chance)} | {ranks.by_score.n if ranks.by_score else 0} |"
        )
    return (
        "## Token mean reciprocal rank\n\n"
        "At every token of the winning answer: 1/rank of it among all the answers to its prompt, "
        "by the scores of prefixes of the same length; the mean over tokens, then over prompts. 1 "
        "means that the winner leads from its first token on. The first row shows how early the "
        "scorer prefers the best answer, the second how early it prefers its own final favourite. "
        "It is a problem if the first is near chance, or far below the second: then the scorer is "
        f"confident but wrong.\n\n{table}"
    )


def _length(report: Report) -> str:
    length = report.length
    return (
        "## Length\n\n"
        "Spearman's rank correlation over whole answers. It is a problem if the score depends on "
        "length much more than the reward does: steering then changes length, not reward.\n\n"
        "![score against length](report-length.png)\n\n"
        f"| | ρ |\n|---|---|\n| score, length | {_number(length.score)} |\n"
        f"| reward, length | {_number(length.reward)} |\n"
        f"| score, reward | {_number(length.score_and_reward)} |\n\nn = {length.n} completions."
    )


def _credit(credit: Credit) -> str:
    return (
        "## Where credit sits\n\n"
        "How much each token changes the score, from the second token on. Rewards of real tasks "
        "often turn on a few tokens; a scorer that spreads its score evenly does not know them. "
        "Compare with the measured credit of the base's answers (`trimtab rollout --odds`).\n\n"
        "| | |\n|---|---|\n"
        f"| share of the change in the tenth of the tokens that move it most | {credit.top} |\n"
        f"| the same, if all moved it alike | {credit.even:.3f} |\n"
        f"| Gini's coefficient | {credit.gini} |\n\n"
        f"n = {credit.answers} answers, {credit.steps} tokens."
    )


def _values(values: ValueAgreement, is_value: bool) -> str:
    if is_value:
        text = (
            "This scorer predicts the mean return of a prefix. The lower its error, the more "
            "reward it gains when it steers; the error cannot be below the noise, which comes from "
            "the few completions of each prefix. It is a problem if R² is below 0: a constant "
            "would be better. A slope s other than 1 is a wrong scale: β then acts as β/s would "
            "with calibrated values.\n\n"
        )
        rows = (
            f"| MSE | {values.mse} |\n| noise | {values.noise:.3f} |\n"
            f"| R² | {_number(values.r2)} |\n| calibration slope | {_number(values.slope)} |\n"
            f"| calibration intercept | {_number(values.intercept)} |\n"
            f"| expected calibration error | {values.calibration_error:.3f} |\n"
            f"| rank correlation | {_number(values.spearman)} |"
        )
    else:
        text = (
            "This scorer orders prefixes on its own scale, so only its order and its error after "
            "the best affine map can be compared with the mean return. It is a problem if the rank "
            "correlation is below 0.2.\n\n"
        )
        rows = (
            f"| rank correlation | {_number(values.spearman)} |\n"
            f"| MSE after the best affine map | {values.mse_after_affine} |\n"
            f"| noise | {values.noise:.3f} |"
        )
    return (
        f"## Values of prefixes\n\n{text}![reliability](report-reliability.png)\n\n"
        f"| | |\n|---|---|\n{rows}\n\nn = {values.mse.n} prefixes."
    )


def _inheritance(report: Report) -> str:
    rows = "\n".join(
        f"| {part.fraction:.0%} | {part.wins} | {part.wins.n} |" for part in report.inheritance
    )
    return (
        "## Does a prefix inherit its answer's label?\n\n"
        "A property of the data, not of the scorer: how often a losing answer, cut and continued "
        "by the base, beats a better answer to its prompt. Objectives that give a prefix the label "
        "of its answer (partial Bradley-Terry, CD-FUDGE, RAD) assume 0. An uninformative prefix "
        "wins a third of the time. It is a problem if the figure is near a third late in the "
        "answer: the labels of prefixes are then mostly noise; use more rollouts and a TD "
        "objective.\n\n![inheritance](report-inheritance.png)\n\n"
        f"| kept | wins | n (pairs) |\n|---|---|---|\n{rows}"
    )
