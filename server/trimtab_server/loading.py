"""Scorers that are loaded and unloaded while serving.

Of each load a new version is made, that no request knows yet:

1. The engine checks and builds it in a thread; the steps continue.
2. A readiness check goes through it. If anything is wrong, it is dropped, and nothing has changed.
3. Its name means it from now on. What a request began with, it keeps to its end; then the version
   that nobody uses any more is dropped.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from trimtab.config import ScorerSpec
from trimtab.engine import Version
from trimtab.errors import ScorerRefused, TrimtabError, UnknownScorer
from trimtab.hot_loading import FAMILIES
from trimtab.params import NAME, Number
from trimtab_server import readiness
from trimtab_server.errors import ScorerInUse, SlowLoad, invalid
from trimtab_server.state import State

POLL_SECONDS = 0.05
LOAD_SECONDS = 300.0
"""A checkpoint must be read by then. One that hangs (on a disk that is gone) is left to itself."""
CANARY_SECONDS = 300.0
"""A canary that comes while others are served may have to wait its turn."""

Name = Field(pattern=rf"^{NAME.pattern}$")


def _hot(family: str) -> str:
    if family not in FAMILIES:
        raise ValueError(f"expected one of {', '.join(FAMILIES)}")
    return family


class LoadRequest(BaseModel):
    """The body of POST /v1/scorers: a ScorerSpec whose paths are names below the scorer_dir."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Name
    path: str = Name
    family: Annotated[str, AfterValidator(_hot)] | None = None
    reference: str | None = Field(None, pattern=rf"^{NAME.pattern}$")
    alpha: Number | None = None

    @classmethod
    def parse(cls, fields: Any) -> "LoadRequest":
        """Check a body.

        Raises:
            InvalidRequest: naming at most three fields, never their values.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise invalid(error, cls.model_fields) from None

    def spec(self, root: Path) -> ScorerSpec:
        """Where it is.

        Raises:
            ScorerRefused: it is not there.
        """
        for name in (self.path, self.reference):
            if name is not None and not (root / name).is_dir():
                raise ScorerRefused(
                    "there is no directory of that name below the server's scorer_dir.",
                    param="path" if name == self.path else "reference",
                )
        reference = None if self.reference is None else str(root / self.reference)
        path = str(root / self.path)
        return ScorerSpec(path=path, family=self.family, reference=reference, alpha=self.alpha)


class Loading:
    """Changes what a server serves, one change at a time."""

    def __init__(self, state: State, root: Path) -> None:
        self.state = state
        self.root = root
        self.loading = asyncio.Lock()  # one at a time is read: two may not fit side by side
        self.lock = asyncio.Lock()
        self.numbers = count(2)
        self.retiring: set[asyncio.Task[None]] = set()

    async def load(self, asked: LoadRequest) -> Version:
        """Serve a checkpoint under a name, in place of what had the name.

        Raises:
            ScorerRefused, NoRoom: it does not load, or does not steer.
            SlowLoad: it took too long.
            ScorerInUse: a composite rests on what has the name.
        """
        async with self.loading:
            self._check_parts(asked.name)
            version = Version(asked.name, next(self.numbers), None)
            try:
                kind = await self._load(version, asked)
                version.family, version.reads = kind["family"], kind["reads"]
                version.distributional = kind["distributional"]
                wrong = await readiness.complaint(self.state, asked.name, version, CANARY_SECONDS)
                if wrong is not None:
                    raise ScorerRefused(f"scorer '{asked.name}' is not loaded: it {wrong}.")
                async with self.lock:
                    await self._serve(version)
            except BaseException:
                with suppress(TrimtabError):
                    await self.state.engine.drop(version.key)
                raise
            return version

    async def _serve(self, version: Version) -> None:
        await self.state.engine.serve(version.name, version.key)
        before = self.state.scorers.get(version.name)
        self.state.scorers[version.name] = version
        self.state.complaints[version.name] = None
        self.state.faults[version.name] = 0
        if before is not None:
            self._retire(before)

    async def unload(self, name: str) -> None:
        """Serve a scorer no more.

        Raises:
            UnknownScorer: it is not served.
            ScorerInUse: requests that name none get it, or a composite rests on it.
        """
        async with self.lock:
            if name not in self.state.scorers:
                raise UnknownScorer(
                    "no scorer of that name is served here. GET /v1/scorers lists them.",
                    code="scorer_not_found",
                )
            if name in (self.state.default or ()):
                raise ScorerInUse(
                    f"scorer '{name}' is one that requests get which name none; start the server "
                    "with other --default-scorer first."
                )
            self._check_parts(name)
            version = self.state.scorers.pop(name)
            self.state.complaints.pop(name, None)
            self.state.faults.pop(name, None)
            await self.state.engine.serve(name, None)
            self._retire(version)

    def _check_parts(self, name: str) -> None:
        for other in self.state.scorers.values():
            if name in other.parts:
                raise ScorerInUse(
                    f"scorer '{name}' is a part of composite '{other.name}'; unload that first."
                )

    async def _load(self, version: Version, asked: LoadRequest) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                # Even to look for a directory may take for ever, where its disk is gone.
                spec = await asyncio.to_thread(asked.spec, self.root)
                return await self.state.engine.load(version.key, spec, self.root)
        except TimeoutError:
            raise SlowLoad(
                f"scorer '{version.name}' is not loaded: its files were not read within "
                f"{LOAD_SECONDS:g} seconds; see to the disk of the scorer_dir."
            ) from None

    def _retire(self, version: Version) -> None:
        """Drop a version when the last request that began with it has ended."""

        async def wait() -> None:
            await asyncio.sleep(POLL_SECONDS)  # for requests that have just found it
            while version.users:
                await asyncio.sleep(POLL_SECONDS)
            with suppress(TrimtabError):  # a dead engine has dropped it
                await self.state.engine.drop(version.key)

        task = asyncio.create_task(wait())
        self.retiring.add(task)
        task.add_done_callback(self.retiring.discard)
