"""The registry: scorers by name, the versions that requests use, and their faults."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from trimtab.contrast import contrasts
from trimtab.engine import GenerationRequest
from trimtab.rows import Row
from trimtab.scorers.base import Scorer
from trimtab.scoring.calls import ScorerCalls
from trimtab.scoring.meters import Timings


class Registry:
    """The scorers of one guide.

    A version is "name@number". A request keeps the versions that it started with, so a name can
    switch to another scorer while earlier requests still run.
    """

    def __init__(self, scorers: Mapping[str, Scorer], timeout: float = math.inf) -> None:
        """timeout: maximum seconds of a scorer per step, see ScorerCalls."""
        self.scorers = dict(scorers)
        """The current scorer of each name."""
        self.principles = contrasts()
        """The scorers of principles, by their places in a request."""
        self.versions = {f"{name}@1": scorer for name, scorer in scorers.items()}
        self.calls = ScorerCalls(timeout)
        self.timings = Timings()
        self.faults: Counter[str] = Counter()
        self.last_error: dict[str, str] = {}

    def at(self, versions: str) -> dict[str, Scorer]:
        """The scorers by name: in the listed versions ("a@2,b@1"), else the current ones."""
        keys = [key for key in versions.split(",") if key in self.versions]
        return {**self.scorers, **{key.partition("@")[0]: self.versions[key] for key in keys}}

    def pinned(self, request: GenerationRequest) -> dict[str, Scorer]:
        """The scorers of a request, in the versions that it began with."""
        scorers = self.at(",".join(version.key for version in request.versions))
        names = request.guidance.scorers if request.guidance is not None else None
        return {name: scorers[name] for name in names or ()}

    def scorer_of(self, row: Row, name: str) -> Scorer:
        """The version of a scorer that a row started with."""
        return row.scorers.get(name) or self.principles.get(name) or self.scorers[name]

    def reads_states(self, row: Row) -> bool:
        """Whether one of a row's scorers reads the base's states."""
        names = row.params.scorers or {}
        return any(self.scorer_of(row, name).reads_states for name in names)

    def serve(self, name: str, version: str | None) -> None:
        """Switch a name to a version, or remove the name if `version` is None."""
        self.faults.pop(name, None)
        self.last_error.pop(name, None)
        if version is None:
            self.scorers.pop(name, None)
            self.timings.of.pop(name, None)
        else:
            self.scorers[name] = self.versions[version]

    def note_fault(self, row: Row, name: str, message: str) -> None:
        """Count a fault of a scorer, and drop what it keeps for the row."""
        self.faults[name] += 1
        self.last_error[name] = message
        if name in row.scorers or name in self.scorers:  # a principle keeps nothing
            self._forget(name, self.scorer_of(row, name), [row.key])

    def forget(self, keys: Sequence[int]) -> None:
        """Make every scorer drop what it keeps for rows that will not be scored again."""
        for version, scorer in self.versions.items():
            self._forget(version.partition("@")[0], scorer, keys)

    def _forget(self, name: str, scorer: Scorer, keys: Sequence[int]) -> None:
        def work() -> None:
            for key in keys:
                scorer.forget(key)

        self.calls.run(name, scorer, work, None)
