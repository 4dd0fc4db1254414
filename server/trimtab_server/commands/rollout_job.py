"""The work of `trimtab rollout`, from its options to the finished file."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trimtab.config import parse_scorer
from trimtab.errors import StartError
from trimtab.logs import configure_logging
from trimtab.params import GuidanceParams
from trimtab.sampling import RolloutSampling
from trimtab_lab.rollouts.journal import Journal
from trimtab_lab.rollouts.odds import CutPair, cut_pairs, measure
from trimtab_lab.rollouts.prefixes import CutAnswer, complete, cut_answers
from trimtab_lab.rollouts.prompts import RolloutPrompt, read
from trimtab_lab.rollouts.remote import RemoteSampler
from trimtab_lab.rollouts.run import Sampler, roll_out
from trimtab_models import pretrained, rewards
from trimtab_models.data.encoding import vocabulary
from trimtab_server import bases

GUIDANCE = ("beta", "k", "mass", "tail")


def run(options: Mapping[str, Any], flags: Sequence[str]) -> None:
    """Run the command with its options. Errors that need no model are raised first.

    Raises:
        TrimtabError, ValueError, OSError: with a message for the user.
    """
    if (options["prompts"] is None) == (options["complete"] is None):
        raise StartError("give one of --prompts FILE and --complete FILE.")
    scorers = dict(parse_scorer(text) for text in options["scorer"] or ())
    guidance = {name: options[name] for name in GUIDANCE if options[name] is not None}
    if guidance and not scorers:
        names = ", ".join(f"--{name}" for name in guidance)
        needs = "needs" if len(guidance) == 1 else "need"
        raise StartError(f"{names} {needs} a scorer: --scorer NAME=PATH.")
    params = GuidanceParams.parse(guidance) if scorers else None
    fields = ("n", "temperature", "top_p", "max_tokens", "seed")
    sampling = RolloutSampling(**{name: options[name] for name in fields}, params=params)
    cutting = options["complete"] is not None
    if cutting and (options["reward"] is None or sampling.n < 2):
        raise StartError("--complete needs a --reward, and --n of 2 or more.")
    if options["ray_actors"] is not None and options["ray"] is None:
        raise StartError("--ray-actors needs --ray ADDRESS.")
    if options["prefix_rewards"] and (cutting or options["reward"] is None):
        raise StartError("--prefix-rewards needs a --reward and --prompts.")
    if options["odds"] and not cutting:
        raise StartError("--odds needs --complete FILE, with pairs or rollouts.")
    if options["lengths"] is not None and not options["odds"]:
        raise StartError("--lengths needs --odds.")
    model, flags = bases.locate(options["model"], flags)
    source = Path(options["complete"] or options["prompts"])
    recorded = ("model", "at", "limit", "reward", "raw")
    settings = {
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "complete": cutting,
        **{name: options[name] for name in recorded},
        **asdict(sampling),
        "params": params and params.model_dump(),
        "scorers": scorers,
        "flags": list(flags),
        **({"prefix_rewards": True} if options["prefix_rewards"] else {}),
        **({"odds": True, "lengths": options["lengths"]} if options["odds"] else {}),
    }
    keys = ("index",) if cutting else ("index", "sample")
    with Journal(options["out"], settings, keys) as file:
        _fill(file, model, flags, sampling, options, scorers)


def _fill(
    file: Journal,
    model: str,
    flags: Sequence[str],
    sampling: RolloutSampling,
    options: Mapping[str, Any],
    scorers: Mapping[str, Any],
) -> None:
    """Sample the records that the file lacks."""
    cuts: list[CutAnswer] = []
    pairs: list[CutPair] = []
    texts: list[RolloutPrompt] = []
    if options["odds"]:
        pairs = _pairs(model, options, sampling.seed)
        _check_kept(max(max(kept) for pair in pairs for _, kept in pair.points), sampling)
    elif options["complete"] is not None:
        fractions = _fractions(options["at"])
        known = vocabulary(_tokenizer(model))
        cuts = cut_answers(options["complete"], fractions, options["limit"], sampling.seed, known)
        _check_kept(max(cut.kept for cut in cuts), sampling)
    configure_logging()
    if options["prompts"] is not None:
        texts = read(options["prompts"], _tokenizer(model), raw=options["raw"])
    reward = rewards.load(options["reward"]) if options["reward"] else None
    if len(file.records) == (len(cuts) or len(pairs) or len(texts) * sampling.n):
        return
    sampler = _sampler(model, scorers, flags, options["ray"], options["ray_actors"])
    if pairs:
        assert reward is not None
        measure(sampler, pairs, sampling, reward, file)
    elif cuts:
        assert reward is not None
        complete(sampler, cuts, sampling, reward, file)
    else:
        roll_out(sampler, texts, sampling, reward, file, prefixes=options["prefix_rewards"])


def _pairs(model: str, options: Mapping[str, Any], seed: int) -> list[CutPair]:
    lengths = options["lengths"]
    return cut_pairs(
        options["complete"],
        _tokenizer(model),
        shares=() if lengths else _fractions(options["at"]),
        lengths=lengths,
        limit=options["limit"],
        seed=seed,
    )


def _check_kept(longest: int, sampling: RolloutSampling) -> None:
    """Refuse cut answers that leave no token to sample."""
    if longest >= sampling.max_tokens:
        raise StartError(
            f"a cut answer has {longest} tokens; --max-tokens counts whole answers and must be "
            "larger."
        )


def _sampler(
    model: str,
    scorers: Mapping[str, Any],
    flags: Sequence[str],
    ray: str | None,
    count: int | None,
) -> Sampler:
    """An engine in this process, or in the actors of a Ray cluster."""
    # vLLM's import takes seconds, and reads what configure_logging() has set.
    from trimtab.adapters.vllm.offline import Sampler as LocalSampler
    from trimtab.adapters.vllm.offline import engine_options

    options = engine_options(flags)
    if ray is None:
        return LocalSampler(model, scorers, **options)
    return RemoteSampler(ray, model, scorers, options, count)


def _fractions(text: str) -> list[float]:
    try:
        fractions = [float(part) for part in text.split(",")]
    except ValueError:
        fractions = []
    if not fractions or not all(0 < fraction < 1 for fraction in fractions):
        raise StartError("--at must be fractions between 0 and 1, such as 0.25,0.5,0.75.")
    return fractions


def _tokenizer(model: str) -> Any:
    try:
        return pretrained.tokenizer(model)
    except (OSError, ValueError) as error:
        raise StartError(f"the base model {model} cannot be loaded: {error}") from None
