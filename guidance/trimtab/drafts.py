"""Drafted positions of speculative decoding: each is one more row of its request.

An engine that verifies d draft tokens of a request has d + 1 rows of logits for it: one after its
text so far, and one after each draft token. `ahead` makes the rows of the draft tokens, for one
step: their prefixes end with draft tokens, and they share their request's steps. The engine then
accepts some of the draft tokens, from the first on, so only at the request's next step it is known
which: `settle` keeps what belongs to those, and drops the rest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from trimtab.records import Records
from trimtab.rows import Row, next_key
from trimtab.scoring.pool import common_prefix


def ahead(row: Row, tokens: Sequence[int]) -> list[Row]:
    """The rows after each of a row's draft tokens, for one step."""
    rows = [row]
    for token in tokens:
        last = rows[-1]
        prefix = np.append(last.prefix, np.int64(token))
        rows.append(
            replace(last, prefix=prefix, key=next_key(), earlier=last, drafted=[], state=None)
        )
    row.drafted = rows[1:]
    return row.drafted


def settle(row: Row, records: Records) -> list[int]:
    """Keep what belongs to the draft tokens of a row's last step that its new prefix has.

    Returns the keys of the rows of that step, which will not be scored again.
    """
    if not row.drafted:
        return []
    same = min(common_prefix(row.drafted[-1].prefix, row.prefix), len(row.prefix) - 1)
    for draft in row.drafted:
        if len(draft.prefix) <= same:
            row.state, row.scored = draft.state or row.state, draft.scored
            row.fault = row.fault or draft.fault
        else:
            records.drop(row, len(draft.prefix))
    keys = [draft.key for draft in row.drafted]
    row.drafted = []
    return keys


def pass_on_faults(rows: Iterable[Row]) -> None:
    """A row that has lost its guidance is followed by draft tokens without guidance."""
    for row in rows:
        if row.fault is None and row.earlier is not None:
            row.fault = row.earlier.fault


def levels(rows: Sequence[tuple[int, Row]]) -> list[list[tuple[int, Row]]]:
    """Rows by the number of draft tokens in their prefixes, fewest first."""
    return _in_order([(depth(row), (i, row)) for i, row in rows])


def waves(rows: Sequence[tuple[int, Row]]) -> list[list[tuple[int, Row]]]:
    """Rows that are guided together, in order: usually all at once.

    With a kl_budget or bounds, the plan of a position follows from the position before it.
    """
    return _in_order([(depth(row) if row.params.continues else 0, (i, row)) for i, row in rows])


def positions(rows: Iterable[Row]) -> int:
    """The most positions of one request among rows that are scored together."""
    return len({depth(row) for row in rows})


def depth(row: Row) -> int:
    """Draft tokens at the end of a row's prefix, in this step."""
    return 0 if row.earlier is None else 1 + depth(row.earlier)


def _in_order(
    ranked: Sequence[tuple[int, tuple[int, Row]]],
) -> list[list[tuple[int, Row]]]:
    groups: dict[int, list[tuple[int, Row]]] = {}
    for rank, pair in ranked:
        groups.setdefault(rank, []).append(pair)
    return [groups[rank] for rank in sorted(groups)]
