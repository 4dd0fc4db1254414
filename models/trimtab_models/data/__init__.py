"""Training data: records on disk or on the hub, their formats, token ids, and derived sets.

A source is a JSON Lines file, a directory, or the name of a data set (see `sources`). Its records
have one of these formats, which include TRL's (see `formats`):

    rollout     {"prompt", "completion", "reward": number} or, unpaired, {..., "label": true};
                also with rewards of steps, see `steps`
    preference  {"prompt", "chosen", "rejected"}, or without the prompt, if both sides begin with it
    ranking     {"prompt", "completions": [best, ..., worst]}

Every field is text or a list of chat messages, which the scorer's tokenizer renders once (see
`encoding`). A record may also contain a field's sampled ids ("prompt_token_ids",
"completion_token_ids", "chosen_token_ids", ...): they are used unchanged, because a tokenizer may
split the same text differently. Rows that cannot be used raise an error that names them.
"""

from pathlib import Path
from typing import Any

from trimtab_models.data.derive import preferences, rankings, split
from trimtab_models.data.encoding import Encoder, cut
from trimtab_models.data.faults import BrokenRows, Record, word
from trimtab_models.data.formats import FORMATS, items, pairs, ranked, rollouts
from trimtab_models.data.lengths import shorten
from trimtab_models.data.sources import read, rows, write

__all__ = [
    "BrokenRows",
    "Record",
    "cut",
    "load",
    "pairs",
    "preferences",
    "ranked",
    "rankings",
    "read",
    "rollouts",
    "shorten",
    "split",
    "write",
]


def load(
    source: str | Path,
    kind: str,
    tokenizer: Any,
    max_length: int | None = None,
    reads: int | None = None,
    aspect: str | None = None,
) -> list[Any]:
    """Load the training items of an objective.

    Args:
        source: a JSON Lines or parquet file, a directory, or a data set's name; see `sources`.
        kind: "rollouts", "pairs" or "ranked", an objective's `data`.
        tokenizer: the scorer's; it has an EOS, and a chat template if there are chats.
        max_length: maximum tokens of prompt + completion; by default there is no limit. Longer
            rows are cut by `shorten`, which logs the numbers.
        reads: maximum tokens that the networks read. Longer rows are faults, unless max_length
            cuts them.
        aspect: the aspect of the spans that rollouts are rewarded for; by default, all rewards.

    Returns:
        A `Rollout`, `Pair` or `Ranked` for each row, in the source's order.

    Raises:
        ValueError: rows cannot be used, named by file and line; there are no rows, or no span of
            the aspect.
        OSError: the source does not exist or cannot be read.
    """
    if aspect is not None and kind != "rollouts":
        raise ValueError(f"aspect: only rollouts have spans with aspects, {kind} have none.")
    if kind not in FORMATS:
        raise ValueError(f"there is no kind of data {kind!r}; there are {', '.join(FORMATS)}.")
    cut_to_fit = max_length is not None and reads is not None and max_length <= reads
    limit = None if cut_to_fit else reads
    encoder = Encoder(tokenizer, aspect)
    loaded = items(rows(source), FORMATS[kind], encoder, limit)
    if not loaded:
        raise ValueError(f"{source} holds no rows to train on.")
    if aspect is not None and aspect not in encoder.aspects:
        there = ", ".join(word(name, 30) for name in sorted(encoder.aspects)[:8])
        raise ValueError(f"aspect: no span of {source} has it; the aspects are {there or 'none'}.")
    return loaded if max_length is None else shorten(loaded, max_length)
