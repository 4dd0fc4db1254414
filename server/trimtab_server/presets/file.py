"""The file of presets, in YAML: read at start, replaced at each change."""

import os
from collections.abc import Mapping
from pathlib import Path

import yaml

from trimtab.errors import StartError, TrimtabError
from trimtab_models import outputs
from trimtab_server.presets.preset import Preset, check_name

HEAD = "# Presets of a Trimtab server. PUT and DELETE of /v1/presets/NAME rewrite this file.\n"


def read(file: Path, *, required: bool) -> dict[str, Preset]:
    """The presets of a file; none if it does not exist and is not required.

    Raises:
        StartError: it cannot be read, or holds something else.
    """
    if not file.exists() and not required:
        return {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise StartError(f"the presets in {file} cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise StartError(f"the presets in {file} are not valid YAML.") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise StartError(f"{file} must hold presets by name, such as 'warm: {{guidance: ...}}'.")
    presets = {}
    for name, fields in content.items():
        try:
            check_name(name)
            presets[name] = Preset.parse(fields)
        except (ValueError, TrimtabError) as error:
            raise StartError(f"preset '{name[:64]}' in {file}: {error}") from None
    return presets


def write(file: Path, presets: Mapping[str, Preset]) -> None:
    """Replace a file of presets at once; only its owner may read it.

    Raises:
        OSError: it cannot be written; it is unchanged.
    """
    text = yaml.safe_dump({n: one.stored() for n, one in presets.items()}, sort_keys=False)
    with outputs.writing(file) as part:
        part.touch(mode=0o600)
        with part.open("w", encoding="utf-8") as stream:
            stream.write(HEAD + text)
            stream.flush()
            os.fsync(stream.fileno())
