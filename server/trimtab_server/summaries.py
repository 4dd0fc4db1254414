"""Records where stock clients keep them: a response header, and `usage.guidance`.

Clients drop fields that they do not know, such as a choice's `guidance`. Most of them keep the
headers of an answer, and the whole `usage` (docs/clients.md).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.engine import Record

HEADER = "Trimtab-Guidance"
"""The response header with the record of the only choice of an answer that is not streamed."""
HEADER_BYTES = 2048
"""Maximum size of its value: proxies read the heads of answers into a few kilobytes."""


def header(records: Sequence[Record | None]) -> str | None:
    """The header's value: the record without its trace, as compact JSON in ASCII.

    None if there is more than one choice, or no record. A record that is too large keeps its
    numbers, such as `kl` and `steps`, and gets `"cut": true`; its scores, strengths and error are
    in the body alone.
    """
    if len(records) != 1 or records[0] is None:
        return None
    record = {name: value for name, value in records[0].items() if name != "trace"}
    text = _compact(record)
    if len(text) <= HEADER_BYTES:
        return text
    numbers = {k: v for k, v in record.items() if isinstance(v, int | float)}
    return _compact({**numbers, "cut": True})


def usage(records: Sequence[Record | None]) -> dict[str, Any]:
    """Fields for `usage`; none if no choice has a record.

    guidance: over all choices, the sums of `kl` and `steps`, and the mean of each of the `scores`.
    guidance_steps, guidance_kl_millinats: the same sums as integers, the KL in thousandths of a
    nat: some clients, such as pydantic-ai, keep integers alone, and add them up over requests.
    """
    known = [record for record in records if record is not None]
    if not known:
        return {}
    scored = [record["scores"] for record in known]
    names = {name: None for scores in scored for name in scores}  # in their order
    means = {}
    for name in names:
        values = [scores[name] for scores in scored if name in scores]
        means[name] = float(sum(values) / len(values))
    # A float even if it is 0: clients that add usages up, such as LangChain, refuse mixed types.
    kl = float(sum(record["kl"] for record in known))
    steps = sum(record["steps"] for record in known)
    return {
        "guidance": {"kl": kl, "steps": steps, "scores": means},
        "guidance_steps": steps,
        "guidance_kl_millinats": round(1000 * kl),
    }


def add_usage(answer: dict[str, Any], records: Sequence[Record | None]) -> None:
    """Add the fields of `usage` to the usage of an answer or event, if it has one.

    On /v1/responses, an event holds the answer in `response`.
    """
    owner = answer.get("response") if isinstance(answer.get("response"), dict) else answer
    counts = owner.get("usage") if isinstance(owner, dict) else None
    if isinstance(counts, dict):
        counts.update(usage(records))


def _compact(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"))
