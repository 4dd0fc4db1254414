"""`trimtab rollout`: sample the frozen base, label what it says, and write JSON Lines."""

from pathlib import Path
from typing import Annotated

import typer

from trimtab_server.commands.resumable import resumable


def rollout(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Base: a directory or hub name, or 'demo'.")],
    out: Annotated[Path, typer.Option(help="JSON Lines to append to; taken up again if begun.")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A text file (a user's message a line) or JSON Lines with a 'prompt' (messages, "
            "or text that stands as it is; further fields are kept)."
        ),
    ] = None,
    complete: Annotated[
        Path | None,
        typer.Option(help="Instead of --prompts: rollouts to cut and complete --n times each."),
    ] = None,
    at: Annotated[str, typer.Option(help="--complete: the fractions to cut at.")] = "0.5",
    limit: Annotated[
        int | None, typer.Option(help="--complete: this many rollouts, drawn by the seed.", min=1)
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(
            help="module:function of (prompt, completion), or with a third parameter for the "
            "record; classifier:PATH[,label=,form=chat|pair,batch_size=,device=]; "
            "judge:URL,model=NAME[,template=FILE,concurrency=,timeout=,retries=], its key in "
            "TRIMTAB_JUDGE_KEY."
        ),
    ] = None,
    n: Annotated[int, typer.Option(help="Completions of each prompt.", min=1)] = 8,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0)] = 0.7,
    top_p: Annotated[float, typer.Option(help="Nucleus; 1 is all tokens.", min=0, max=1)] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 256,
    seed: Annotated[int, typer.Option(help="Each answer's own seed comes from it.")] = 0,
    raw: Annotated[bool, typer.Option(help="Lines of text stand as they are.")] = False,
    scorer: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATH[,key=value...]: guided rollouts.", metavar="NAME=PATH"),
    ] = None,
    beta: Annotated[float | None, typer.Option(help="Guided: strength (1).")] = None,
    k: Annotated[int | None, typer.Option(help="Guided: most candidates (32).")] = None,
    mass: Annotated[float | None, typer.Option(help="Guided: their probability (0.99).")] = None,
    tail: Annotated[str | None, typer.Option(help="Guided: truncate or mean.")] = None,
) -> None:
    """Sample MODEL and label each answer. Flags not listed here go to vLLM's engine.

    A record has the prompt and the completion in TRL's field names, their token ids, the base's
    log-probability of each token (temperature 1) and the reward. Stopped in any way, the same
    command goes on where it was. With --complete, a record is a half-completed answer with the
    returns of its n completions, to validate values.
    """
    # Imported here, for torch and transformers take seconds.
    from trimtab_server.commands import rollout_job

    with resumable():
        rollout_job.run(context.params, context.args)
