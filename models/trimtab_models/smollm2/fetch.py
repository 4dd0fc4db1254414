"""The directory of the base: a stand-in that reads TRIMTAB_CACHE."""

import os
from pathlib import Path


def base() -> Path:
    """The directory of SmolLM2-135M-Instruct.

    Raises:
        FileNotFoundError: TRIMTAB_CACHE does not name a directory with the model.
    """
    folder = Path(os.environ.get("TRIMTAB_CACHE", "smollm2"))
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"there is no model in {folder}; set TRIMTAB_CACHE to the directory of "
            "SmolLM2-135M-Instruct"
        )
    return folder
