"""Hot loading: scorers are loaded and unloaded while the server runs.

Each load makes a new version that no request uses yet:

1. The engine checks and builds the version in a thread; decoding continues.
2. A readiness check runs on it. If the check fails, the version is dropped and nothing changes.
3. New requests use the version. A running request keeps the version that it began with; a replaced
   version is dropped when no request uses it.

With `"serve": false`, step 3 waits for a request of its own, so that several servers can change
together: a load that fails on one of them changes none.
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
from trimtab.hot_loading import HOT_FAMILIES
from trimtab.params import NAME, Number
from trimtab_server import readiness
from trimtab_server.errors import ScorerInUse, SlowLoad, invalid
from trimtab_server.state import State

POLL_SECONDS = 0.05
LOAD_SECONDS = 300.0
"""Maximum time to read a checkpoint. A hanging read (lost disk) is abandoned."""
CHECK_SECONDS = 300.0
"""Maximum time of the readiness check, which may queue behind other requests."""
STAGED_SECONDS = 600.0
"""How long a version waits to be served before it is dropped."""

Name = Field(pattern=rf"^{NAME.pattern}$")


def _hot(family: str) -> str:
    if family not in HOT_FAMILIES:
        raise ValueError(f"expected one of {', '.join(HOT_FAMILIES)}")
    return family


class LoadRequest(BaseModel):
    """The body of POST /v1/scorers: a ScorerSpec whose paths are names below the scorer_dir."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Name
    path: str = Name
    family: Annotated[str, AfterValidator(_hot)] | None = None
    reference: str | None = Field(None, pattern=rf"^{NAME.pattern}$")
    alpha: Number | None = None
    serve: bool = True

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
        """The spec with full paths.

        Raises:
            ScorerRefused: a directory does not exist.
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
    """Loads and unloads scorers, one change at a time."""

    def __init__(self, state: State, root: Path) -> None:
        self.state = state
        self.root = root
        self.loading = asyncio.Lock()  # one load at a time: two may not fit into memory
        self.lock = asyncio.Lock()
        self.numbers = count(2)
        self.retiring: set[asyncio.Task[None]] = set()
        self.staged: dict[tuple[str, int], tuple[Version, asyncio.Task[None]]] = {}

    async def load(self, request: LoadRequest) -> Version:
        """Serve a checkpoint under a name; it replaces a scorer of that name.

        With `serve` false, the version is complete and checked, and waits for `serve_staged`.

        Raises:
            ScorerRefused, NoRoom: it does not load, or fails its readiness check.
            SlowLoad: it took too long.
            ScorerInUse: a scorer of that name is a part of a composite.
        """
        async with self.loading:
            self._check_parts(request.name)
            version = Version(request.name, next(self.numbers), None)
            try:
                description = await self._load(version, request)
                version.family, version.reads = description["family"], description["reads"]
                version.distributional = description["distributional"]
                version.whole = description["whole"]
                version.to_go = description.get("to_go", False)
                version.ensemble = description["ensemble"]
                problem = await readiness.complaint(
                    self.state, request.name, version, CHECK_SECONDS
                )
                if problem is not None:
                    raise ScorerRefused(f"scorer '{request.name}' is not loaded: it {problem}.")
                if request.serve:
                    async with self.lock:
                        await self._serve(version)
            except BaseException:
                with suppress(TrimtabError):
                    await self.state.engine.drop(version.key)
                raise
            if not request.serve:
                task = asyncio.create_task(self._expire(version))
                self.staged[version.name, version.number] = version, task
            return version

    async def serve_staged(self, name: str, number: int) -> Version:
        """Serve a version that was loaded with `serve` false.

        Raises:
            UnknownScorer: no such version waits.
            ScorerInUse: a scorer of that name is a part of a composite.
        """
        async with self.lock:
            self._check_parts(name)
            version = self._unstage(name, number)
            await self._serve(version)
            return version

    async def drop_staged(self, name: str, number: int) -> None:
        """Drop a version that was loaded with `serve` false.

        Raises:
            UnknownScorer: no such version waits.
        """
        version = self._unstage(name, number)
        with suppress(TrimtabError):
            await self.state.engine.drop(version.key)

    def _unstage(self, name: str, number: int) -> Version:
        if (name, number) not in self.staged:
            raise UnknownScorer(
                "no version of that name and number waits to be served here: it is served already, "
                f"was dropped, or waited longer than {STAGED_SECONDS:g} seconds.",
                code="version_not_found",
            )
        version, expiry = self.staged.pop((name, number))
        expiry.cancel()
        return version

    async def _expire(self, version: Version) -> None:
        """Drop a version that nobody serves: its client is gone."""
        await asyncio.sleep(STAGED_SECONDS)
        del self.staged[version.name, version.number]
        with suppress(TrimtabError):
            await self.state.engine.drop(version.key)

    async def _serve(self, version: Version) -> None:
        await self.state.engine.serve(version.name, version.key)
        replaced = self.state.scorers.get(version.name)
        self.state.scorers[version.name] = version
        self.state.complaints[version.name] = None
        self.state.faults[version.name] = 0
        if replaced is not None:
            self._retire(replaced)

    async def unload(self, name: str) -> None:
        """Unload a scorer.

        Raises:
            UnknownScorer: it is not served.
            ScorerInUse: it is a default scorer, or a preset or a composite needs it.
        """
        async with self.lock:
            if name not in self.state.scorers:
                raise UnknownScorer(
                    "no scorer of that name is served here. GET /v1/scorers lists them.",
                    code="scorer_not_found",
                )
            if name in (self.state.default or ()):
                raise ScorerInUse(
                    f"scorer '{name}' is a default scorer; restart the server without it before "
                    "unloading it."
                )
            if (preset := self.state.presets.naming(name)) is not None:
                raise ScorerInUse(
                    f"scorer '{name}' is named by preset '{preset}'; change or delete that first."
                )
            self._check_parts(name)
            version = self.state.scorers.pop(name)
            self.state.complaints.pop(name, None)
            self.state.faults.pop(name, None)
            self.state.checked.pop(name, None)
            await self.state.engine.serve(name, None)
            self._retire(version)

    def _check_parts(self, name: str) -> None:
        for other in self.state.scorers.values():
            if name in other.parts:
                raise ScorerInUse(
                    f"scorer '{name}' is a part of composite '{other.name}'; unload that first."
                )

    async def _load(self, version: Version, request: LoadRequest) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                # On a lost disk, even looking for a directory may take forever.
                spec = await asyncio.to_thread(request.spec, self.root)
                return await self.state.engine.load(version.key, spec, self.root)
        except TimeoutError:
            raise SlowLoad(
                f"scorer '{version.name}' is not loaded: its files were not read within "
                f"{LOAD_SECONDS:g} seconds; see to the disk of the scorer_dir."
            ) from None

    def _retire(self, version: Version) -> None:
        """Drop a version once no request uses it."""

        async def wait() -> None:
            await asyncio.sleep(POLL_SECONDS)  # for requests that have just looked it up
            while version.users:
                await asyncio.sleep(POLL_SECONDS)
            with suppress(TrimtabError):  # a dead engine has already lost it
                await self.state.engine.drop(version.key)

        task = asyncio.create_task(wait())
        self.retiring.add(task)
        task.add_done_callback(self.retiring.discard)
