"""The presets of a server: those of its settings, which are fixed, and those of its file."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hmac import compare_digest
from pathlib import Path
from typing import Any

from trimtab.errors import InvalidGuidance, InvalidRequest, StartError, TrimtabError, UnknownScorer
from trimtab.params import Served
from trimtab_models import outputs
from trimtab_server.auth import digest
from trimtab_server.errors import Forbidden, PresetInUse, UnknownPreset
from trimtab_server.presets.file import read, write
from trimtab_server.presets.preset import Preset, check_name, sent
from trimtab_server.settings import Settings


@dataclass
class Presets:
    """Presets by name. Keys are kept and compared as SHA-256 digests."""

    fixed: Mapping[str, Preset] = field(default_factory=dict)
    """Those of the settings."""
    saved: dict[str, Preset] = field(default_factory=dict)
    """Those of the file."""
    file: Path | None = None
    """The file, if PUT and DELETE may change it."""
    default: str | None = None
    """The preset of requests that name none and have no guidance."""
    users: tuple[bytes, ...] = ()
    admin: bytes | None = None
    loads: bool = False
    """Whether scorers may be loaded later; then a preset of the file may wait for one."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # one change at a time

    @classmethod
    def load(cls, settings: Settings) -> "Presets":
        """The presets of a server's settings and file.

        Raises:
            StartError: the file cannot be used, or a preset, a binding or the default is invalid.
        """
        keys = settings.keys()
        admin = None if keys["admin_key"] is None else digest(keys["admin_key"].encode())
        users = tuple(digest(key.encode()) for key in keys["keys"])
        file, saved = settings.presets, {}
        if file is not None:
            try:
                file = outputs.place(file) if admin is None else outputs.file(file)
            except OSError as error:
                raise StartError(
                    f"presets: {error} Presets that never change belong in the settings (preset)."
                ) from None
            saved = read(file, required=admin is None)
        made = cls(
            settings.preset,
            saved,
            None if admin is None else file,
            settings.default_preset,
            users,
            admin,
            admin is not None and settings.scorer_dir is not None,
        )
        if twice := set(made.fixed) & set(saved):
            raise StartError(f"preset '{min(twice)}' is both in the settings and in {file}.")
        if made.default is not None and made.default not in made.all:
            raise StartError(f"there is no preset '{made.default[:64]}', the default_preset.")
        for name, preset in made.all.items():
            try:
                made._check_binding(name, preset)
            except TrimtabError as error:
                raise StartError(error.message) from None
        return made

    @property
    def all(self) -> dict[str, Preset]:
        """Every preset."""
        return {**self.fixed, **self.saved}

    def check(
        self,
        scorers: Iterable[str] | Mapping[str, Served],
        default: Mapping[str, float] | None,
    ) -> list[str]:
        """Check every preset against the scorers that the server starts with.

        Returns the presets that wait for a scorer to be loaded.

        Raises:
            StartError: a preset cannot steer.
        """
        waiting = []
        for name, preset in self.all.items():
            try:
                preset.guidance.resolve(scorers, default)
            except TrimtabError as error:
                if not (self.loads and name in self.saved and isinstance(error, UnknownScorer)):
                    raise StartError(f"preset '{name}' cannot steer: {error.message}") from None
                waiting.append(name)
        return waiting

    def visible(self, key: bytes | None) -> dict[str, Preset]:
        """The presets that the holder of a key may name.

        key: the digest of the request's key; None without one.
        """
        if key is not None and self.admin is not None and compare_digest(key, self.admin):
            return self.all
        return {name: one for name, one in self.all.items() if _open_to(one, key)}

    def bound(self, key: bytes | None) -> str | None:
        """The preset that is bound to a key."""
        names = [n for n, one in self.all.items() if one.key_sha256 and _open_to(one, key)]
        return names[0] if names else None

    def naming(self, scorer: str) -> str | None:
        """A preset that names a scorer."""
        return next((name for name, one in self.all.items() if scorer in _scorers(one)), None)

    async def put(
        self,
        name: str,
        preset: Preset,
        scorers: Mapping[str, Served],
        default: Mapping[str, float] | None,
        *,
        new: bool = False,
    ) -> None:
        """Make or replace a preset, and save it; `new`: only make it.

        Raises:
            Forbidden: the server has no file of presets.
            InvalidRequest, InvalidGuidance: the name is invalid, or the preset cannot steer.
            PresetInUse: it is fixed, or its binding contradicts another preset's, or it exists
                though it must be new.
            TrimtabError: it cannot be saved; nothing has changed.
        """
        async with self.lock:
            self.check_place(name, new=new)
            self._check_binding(name, preset)
            try:
                preset.guidance.resolve(scorers, default)
            except UnknownScorer as error:  # a 404 would mean the preset
                raise InvalidGuidance(error.message, param=error.param, code=error.code) from None
            await self._change(lambda saved: {**saved, name: preset})

    def check_place(self, name: str, *, new: bool) -> None:
        """Check that a preset of this name may be made, or replaced unless it must be new.

        Raises: as `put`.
        """
        try:
            check_name(name)
        except ValueError as error:
            raise InvalidRequest(f"{error}.", param="name") from None
        self._check_changeable(name)
        if new and name in self.saved:
            raise PresetInUse(
                f"there is a preset '{name}' already; choose another name, or send replace true."
            )

    async def delete(self, name: str) -> None:
        """Delete a preset, and save that.

        Raises:
            Forbidden, TrimtabError: as `put`.
            UnknownPreset: there is none of that name.
            PresetInUse: it is fixed, or the default.
        """
        async with self.lock:
            self._check_changeable(name)
            if name not in self.saved:
                raise unknown()
            if name == self.default:
                raise PresetInUse(
                    f"preset '{name}' is the default_preset; restart the server with another one "
                    "before deleting it."
                )
            await self._change(lambda saved: {n: one for n, one in saved.items() if n != name})

    def _check_changeable(self, name: str) -> None:
        if self.file is None:
            raise Forbidden(
                "this server does not change presets while it serves; start it with --admin-key "
                "and --presets FILE."
            )
        if name in self.fixed:
            raise PresetInUse(
                f"preset '{name}' comes from the server's settings; change it there, and restart "
                "the server."
            )

    def _check_binding(self, name: str, preset: Preset) -> None:
        if preset.key_sha256 is None:
            return
        if not any(_open_to(preset, user) for user in self.users):
            raise InvalidRequest(
                f"preset '{name}' is bound to a key that is not one of the server's API keys.",
                param="key",
            )
        if name == self.default:
            raise PresetInUse(
                f"preset '{name}' is the default_preset, which is everybody's; bind another one."
            )
        for other, one in self.all.items():
            if other != name and one.key_sha256 == preset.key_sha256:
                raise PresetInUse(f"presets '{name}' and '{other}' are bound to the same key.")

    async def _change(self, change: Callable[[dict[str, Preset]], dict[str, Preset]]) -> None:
        """Change the presets and their file.

        They are in use before they are saved, so that no scorer is unloaded in between.
        """
        before, self.saved = self.saved, change(self.saved)
        assert self.file is not None
        try:
            await asyncio.to_thread(write, self.file, self.saved)
        except OSError as error:
            self.saved = before
            raise TrimtabError(
                f"the preset is not changed: the server's file of presets cannot be written "
                f"({error.strerror})."
            ) from None


def unknown() -> UnknownPreset:
    """The error for a name that no preset has."""
    return UnknownPreset("there is no preset of that name. GET /v1/presets lists them.")


def _open_to(preset: Preset, key: bytes | None) -> bool:
    if preset.key_sha256 is None:
        return True
    return key is not None and compare_digest(key, bytes.fromhex(preset.key_sha256))


def _scorers(preset: Preset) -> set[str]:
    guidance = preset.guidance
    return {*(guidance.scorers or ()), *guidance.bounded, *(guidance.utility or ())}


def shown(presets: Presets, name: str, model: str) -> dict[str, Any]:
    """A preset as its routes show it, without its key.

    Raises:
        UnknownPreset: there is none of that name.
    """
    if name not in presets.all:
        raise unknown()
    preset = presets.all[name]
    return {
        "id": name,
        "object": "preset",
        "model": f"{model}@{name}",
        "guidance": sent(preset.guidance),
        "bounds": preset.bounds,
        "has_key": preset.key_sha256 is not None,
        "default": name == presets.default,
        "source": "settings" if name in presets.fixed else "file",
    }
