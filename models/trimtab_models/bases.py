"""Base models that commands know by a name: `demo` and `smollm2`."""

import sys

from trimtab_models import demo, smollm2

HUB_NAMES = {"demo": "trimtab-demo-base", smollm2.NAME: smollm2.REPOSITORY}
"""What the card of a scorer calls them."""


def base_path(base: str) -> str:
    """The directory of a base with a name, which is fetched if missing; else `base` itself.

    Raises:
        OSError, ValueError: it cannot be fetched; see `trimtab_models.smollm2.fetch`.
    """
    if base == "demo":
        return str(demo.base())
    if base == smollm2.NAME:
        from trimtab_models.smollm2.fetch import fetch

        return str(fetch(say))
    return base


def base_name(base: str) -> str:
    """The name of a base in the card of a scorer."""
    return HUB_NAMES.get(base, base)


def say(line: str) -> None:
    """Write a line of progress to stderr, so that results on stdout stay clean."""
    sys.stderr.write(f"trimtab: {line}\n")
    sys.stderr.flush()
