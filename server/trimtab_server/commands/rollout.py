"""`trimtab rollout`: sample the frozen base, label the answers, and write JSON Lines."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab_server.commands.resumable import resumable


def rollout(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Base: a directory, a hub name, demo or smollm2.")],
    out: Annotated[Path, typer.Option(help="JSON Lines to append to; a started file is resumed.")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A text file (one user message per line) or JSON Lines with a 'prompt' (messages, "
            "or raw text; other fields are kept)."
        ),
    ] = None,
    complete: Annotated[
        Path | None,
        typer.Option(help="Rollouts to cut and complete --n times each, instead of --prompts."),
    ] = None,
    at: Annotated[str, typer.Option(help="--complete: fractions at which to cut.")] = "0.5",
    limit: Annotated[
        int | None,
        typer.Option(help="--complete: number of rollouts or pairs, sampled with the seed.", min=1),
    ] = None,
    odds: Annotated[
        bool,
        typer.Option(
            "--odds",
            help="--complete: a file of pairs, or of rollouts that are paired; complete both sides "
            "and measure how often the chosen one's prefix wins. bradley-terry trains on it.",
        ),
    ] = False,
    lengths: Annotated[
        int | None,
        typer.Option(
            help="--odds: cut each pair at so many drawn numbers of tokens, the same for both "
            "sides, instead of --at.",
            min=1,
        ),
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            help="module:function of (prompt, completion), optionally with a third parameter, the "
            "record; classifier:PATH[,label=,form=chat|pair,batch_size=,device=]; "
            "judge:URL,model=NAME[,template=FILE,concurrency=,timeout=,retries=], with its key in "
            "TRIMTAB_JUDGE_KEY."
        ),
    ] = None,
    prefix_rewards: Annotated[
        bool,
        typer.Option(
            "--prefix-rewards",
            help="Label each answer after each of its tokens, too; the objective gains needs it.",
        ),
    ] = False,
    n: Annotated[int, typer.Option(help="Completions per prompt.", min=1)] = 8,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0)] = 0.7,
    top_p: Annotated[
        float, typer.Option(help="Nucleus probability; 1 is all tokens.", min=0, max=1)
    ] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Maximum tokens per answer.", min=1)] = 256,
    seed: Annotated[int, typer.Option(help="Seed; determines the seed of each answer.")] = 0,
    raw: Annotated[bool, typer.Option(help="Use lines of text without the chat template.")] = False,
    scorer: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH[,key=value...]; guides the rollouts.", metavar="NAME=PATH"),
    ] = None,
    beta: Annotated[float | None, typer.Option(help="Guided: strength (1).")] = None,
    k: Annotated[int | None, typer.Option(help="Guided: maximum candidates (16).")] = None,
    mass: Annotated[
        float | None, typer.Option(help="Guided: their total probability (0.98).")
    ] = None,
    tail: Annotated[str | None, typer.Option(help="Guided: mean (default) or truncate.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Sample on a Ray cluster, an engine in each actor: auto, HOST:PORT, ray://…, or "
            "local for one on this machine.",
            metavar="ADDRESS",
        ),
    ] = None,
    ray_actors: Annotated[
        int | None,
        typer.Option(help="--ray: engines; default: one per GPU, else per machine.", min=1),
    ] = None,
) -> None:
    """Sample MODEL and label each answer. Other flags go to vLLM's engine.

    A record has the prompt and the completion in TRL's field names, their token ids, the base's
    log-probability of each token (temperature 1) and the reward. With --complete, a record is a
    half-completed answer with the returns of its n completions, to validate values; with --odds
    it is a pair with the odds of its prefixes. After an interruption, run the same command again
    to resume.
    """
    # Imported here because torch and transformers take seconds.
    from trimtab_server.commands import rollout_job

    with resumable():
        rollout_job.run(context.params, context.args)
