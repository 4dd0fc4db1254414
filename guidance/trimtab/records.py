"""Records of guided requests, kept until somebody fetches them, within a bound of memory.

What is over the bound goes, the oldest first: traces, which are large, before whole records.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace

from trimtab.rows import Row, Step

MAX_RECORDS = 4096
MAX_BYTES = 512 * 2**20
"""Of all records together, by estimate."""
STEP_BYTES = 300
"""A step without a trace: the objects that make it, and its place in its row."""
NUMBER_BYTES = 32
"""A number in a list, with the list's reference to it."""


def size(step: Step) -> int:
    """About how many bytes a step takes."""
    if step.trace is None:
        return STEP_BYTES
    lists = 3 + len(step.trace["scores"])  # tokens, two log-probabilities, scores of each scorer
    return STEP_BYTES + lists * (100 + NUMBER_BYTES * len(step.trace["candidates"]))


class Records:
    """The rows of each request that will be asked for, by record key."""

    def __init__(self) -> None:
        self.rows: OrderedDict[str, list[Row]] = OrderedDict()
        self.bytes: dict[str, int] = {}
        self.total = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, row: Row) -> None:
        """Keep a row; one that was preempted takes over what it did before."""
        key = row.record_key
        if key is None:
            return
        rows = self.rows.setdefault(key, [])
        if any(kept is row for kept in rows):
            return
        if len(row.prefix) > row.prompt_length:
            earlier = next((kept for kept in rows if kept.follows(row.prefix)), None)
            if earlier is not None:
                row.steps, row.fault = dict(earlier.steps), earlier.fault
                row.untraced = earlier.untraced
        rows.append(row)
        self._count(key, STEP_BYTES + sum(map(size, row.steps.values())))

    def add(self, row: Row, step: Step) -> None:
        """Write down what was done at the row's present position."""
        row.steps[len(row.prefix)] = step
        key = row.record_key
        if key is not None and key in self.rows:
            self._count(key, size(step))

    def of(self, key: str) -> list[Row]:
        """The rows of a request; none if it is not known."""
        return self.rows.get(key, [])

    def pop(self, key: str) -> list[Row]:
        """The same, and forget them."""
        self.total -= self.bytes.pop(key, 0)
        return self.rows.pop(key, [])

    def clear(self) -> None:
        """Forget all."""
        for key in list(self):
            self.pop(key)

    def _count(self, key: str, more: int) -> None:
        self.bytes[key] = self.bytes.get(key, 0) + more
        self.total += more
        while len(self) > MAX_RECORDS:
            self.pop(next(iter(self)))
        if self.total > MAX_BYTES:
            self._forget()

    def _forget(self) -> None:
        for key in list(self):
            if self.total <= MAX_BYTES:
                return
            if any(row.params.trace and not row.untraced for row in self.rows[key]):
                self._strip(key)
        while self.total > MAX_BYTES and self.rows:
            for row in self.pop(next(iter(self))):
                row.record_key = None  # it is not kept again

    def _strip(self, key: str) -> None:
        """Take the traces of a request out of its rows, for good."""
        left = 0
        for row in self.rows[key]:
            row.untraced = True
            row.steps = {at: replace(step, trace=None) for at, step in row.steps.items()}
            left += STEP_BYTES * (1 + len(row.steps))
        self.total += left - self.bytes[key]
        self.bytes[key] = left
