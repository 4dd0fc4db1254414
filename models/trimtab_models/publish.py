"""Publish a checkpoint as a repository that anyone can load: a directory, or one on the hub.

A published checkpoint contains hub names only, and no path of this machine.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError, see there
    HfHubHTTPError,
    HTTPError,  # re-exported untyped: httpx's or httpx2's, depending on the library's version
    OfflineModeIsEnabled,
)

from trimtab_models import card, checkpoint, manifest, outputs, peft

FILES = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"),
    *("adapter_config.json", peft.INFO),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab.*", "merges.txt", "LICENSE*", "report.md", "report.json", "report-*.png"),
)
"""Files of a checkpoint that are published, beside its card and manifest; no others are."""

BARE = {".gitattributes", "README.md"}
"""Files that the hub puts into a new repository."""


def publish(
    source: str | Path,
    to: str,
    *,
    private: bool = False,
    base_model: str | None = None,
    reference: str | None = None,
) -> str:
    """Publish a checkpoint and return its directory or URL.

    Args:
        source: directory of the checkpoint.
        to: an empty or absent directory (it begins with `.`, `/` or `~`, or exists), or else a
            hub name, `org/name`.
        private: make the repository on the hub private.
        base_model: hub name of the base model, if the checkpoint names a directory.
        reference: hub name of a log-ratio scorer's reference model, likewise.

    Raises:
        ValueError: the checkpoint is damaged or names local models, or `to` is neither a
            directory nor a hub name.
        OSError: there is no checkpoint, the target is not free, or the hub refuses.
    """
    top, folder = Path(source), _folder(to)
    if not top.is_dir():
        raise OSError(f"there is no checkpoint directory at {top}.")
    if folder is not None:
        folder = outputs.place(folder)
        outputs.check_empty(folder)
        outputs.check_free(folder)
        if folder.is_relative_to(top.resolve()):
            raise OSError(f"{folder} is inside the checkpoint itself; choose another directory.")
        if private:
            raise ValueError("private: only a repository on the hub can be private.")
    manifest.verify(top)
    if folder is not None:
        folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder and folder.parent, prefix=".publish-") as scratch:
        work = Path(scratch) / "repository"
        _write(top, work, to if folder is None else None, base_model, reference)
        if folder is not None:
            manifest.put_in_place(work, folder)
            return to
        manifest.write_manifest(work)
        return _upload(work, to, private)


def _folder(to: str) -> Path | None:
    """The directory that `to` names, or None if it is a hub name."""
    path = Path(to).expanduser()
    if to.startswith((".", "/", "~")) or path.is_dir():
        return path
    if to.count("/") == 1 and card.HUB_NAME.fullmatch(to):
        return None
    raise ValueError(
        f"{to!r} is neither a directory nor a hub name; write ./{Path(to).name} for a directory, "
        f"or org/{Path(to).name} for the hub."
    )


def _is_local(name: str, top: Path) -> bool:
    return not card.HUB_NAME.fullmatch(name) or Path(name).is_dir() or (top / name).is_dir()


def _write(
    top: Path, work: Path, repository: str | None, base_model: str | None, reference: str | None
) -> None:
    """Write the repository of the checkpoint `top` into `work`, with every local name replaced."""
    info = checkpoint.read_info(top)
    for option, name in (("base_model", base_model), ("reference", reference)):
        if name is not None and not card.HUB_NAME.fullmatch(name):
            raise ValueError(f"{option}: {name!r} is not a hub name; expected org/name.")
    public = {"base_model": base_model or info.base_model}
    if _is_local(public["base_model"], top):
        public["base_model"] = Path(info.base_model).name or "unknown"
    if info.reference is not None:
        public["reference"] = reference or info.reference
        if _is_local(public["reference"], top):
            raise ValueError(
                f"this scorer's reference model is a directory of this machine "
                f"({info.reference}); publish that too, and pass its hub name with --reference."
            )
    work.mkdir()
    for pattern in FILES:
        for file in top.glob(pattern):
            shutil.copyfile(file, work / file.name)
    if not any(work.glob("*.safetensors")):
        raise OSError(f"{top} holds no weights in safetensors.")
    public_info = info.model_copy(update=public)
    for file in work.glob("*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            _scrub(file, content, public_info.model_dump(), top, base_model)
    text, metadata = card.read(top)
    metadata.pop("base_model", None)
    readme = card.card(public_info, text, work, metadata, repository or "THIS_DIRECTORY")
    (work / card.NAME).write_text(readme, encoding="utf-8")
    _refuse_paths(work, {str(top.resolve()), info.base_model, info.reference or ""})


def _scrub(
    file: Path, content: dict[str, Any], info: Mapping[str, Any], top: Path, base: str | None
) -> None:
    """Replace the local paths in a JSON file of a checkpoint."""
    before = json.dumps(content)
    for key in ("_name_or_path", "name_or_path"):
        content.pop(key, None)
    if file.name == peft.INFO:
        content = dict(info)
    elif file.name == "config.json":
        content["trimtab"] = dict(info)
    elif file.name == "adapter_config.json" and _is_local(content["base_model_name_or_path"], top):
        if base is None:
            raise ValueError(
                "this adapter's base is a directory of this machine "
                f"({content['base_model_name_or_path']}); pass its hub name with --base-model, or "
                "merge the adapter and publish the result."
            )
        content["base_model_name_or_path"] = base
    if json.dumps(content) != before:
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _refuse_paths(work: Path, names: set[str]) -> None:
    """A last check: no text file of the repository contains a path of this machine."""
    paths = {name for name in {*names, str(Path.home())} if name.startswith(("/", "~"))} - {"/"}
    for file in work.iterdir():
        if file.suffix in (".md", ".json", ".txt", ".jinja"):
            text = file.read_text(encoding="utf-8")
            if leak := next((path for path in paths if f"{path}/" in f"{text}/"), None):
                raise ValueError(f"{file.name} would publish the path {leak}; remove it there.")


def _upload(work: Path, name: str, private: bool) -> str:
    """Create the repository if needed, and upload everything in one commit."""
    api = HfApi()
    try:
        url = api.create_repo(name, private=private, exist_ok=True)
        if private and not api.model_info(name).private:
            raise OSError(f"{name} exists and is public; make it private first, or publish openly.")
        files = {file.rfilename for file in api.model_info(name).siblings or ()} - BARE
        if files and manifest.NAME not in files:
            raise OSError(
                f"{name} holds {min(files)!r}, which Trimtab did not publish; choose another name."
            )
        api.upload_folder(repo_id=name, folder_path=work, commit_message="Publish a Trimtab scorer")
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = (
            "; log in with `hf auth login`, or set HF_TOKEN to a token that may write"
            if status in (401, 403)
            else ""
        )
        raise OSError(f"the hub refused {name} (HTTP {status}){hint}.") from error
    except (HTTPError, OfflineModeIsEnabled) as error:
        raise OSError(
            f"the hub cannot be reached ({type(error).__name__}); publish to a directory, or "
            "retry when online."
        ) from error
    return str(url)
