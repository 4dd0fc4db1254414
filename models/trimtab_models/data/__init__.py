"""Training data: records on disk or hub, their formats, token ids, and sets made of other sets.

A source is a JSON Lines file, a directory, or the name of a data set (see `sources`). Its records
are of one of these formats, those of TRL among them (see `formats`):

    rollout     {"prompt", "completion", "reward": number} or, unpaired, {..., "label": true}
    preference  {"prompt", "chosen", "rejected"}, or without the prompt, if both sides begin with it
    ranking     {"prompt", "completions": [best, ..., worst]}

Every field is text or a list of chat messages, which the scorer's own tokenizer renders once (see
`encoding`). Beside a field its ids as they were sampled may stand ("prompt_token_ids",
"completion_token_ids", "chosen_token_ids", ...): they are used as they stand, for a tokenizer may
cut the same text differently. Rows that cannot be used are an error which names them.
"""

from pathlib import Path
from typing import Any

from trimtab_models.data.derive import preferences, rankings, split
from trimtab_models.data.encoding import Encoder, cut
from trimtab_models.data.faults import BrokenRows, Record
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
) -> list[Any]:
    """What an objective trains on, from where it lies.

    Args:
        source: a JSON Lines or parquet file, a directory, or a data set's name; see `sources`.
        kind: "rollouts", "pairs" or "ranked", an objective's `data`.
        tokenizer: of the scorer; it has an EOS, and a chat template if there are chats.
        max_length: the most tokens of prompt + completion; by default there is no limit. What is
            longer is cut as `shorten` says, which logs what it did.
        reads: the most tokens that the networks read. Longer rows are faults, unless max_length
            cuts them.

    Returns:
        One `Rollout`, `Pair` or `Ranked` a row, in the source's order.

    Raises:
        ValueError: rows that cannot be used, each named by file and line; or no row at all.
        OSError: the source is not there or cannot be read.
    """
    if kind not in FORMATS:
        raise ValueError(f"there is no kind of data {kind!r}; there are {', '.join(FORMATS)}.")
    cut_to_fit = max_length is not None and reads is not None and max_length <= reads
    most = None if cut_to_fit else reads
    loaded = items(rows(source), FORMATS[kind], Encoder(tokenizer), most)
    if not loaded:
        raise ValueError(f"{source} holds no rows to train on.")
    return loaded if max_length is None else shorten(loaded, max_length)
