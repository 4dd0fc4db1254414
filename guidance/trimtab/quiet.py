"""A quiet vLLM: what must be said before it is imported."""

import logging
import os
import warnings


def quieten(level: str = "warning") -> None:
    """Let vLLM log from `level` on; at "warning", errors alone, for it warns of much."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR" if level == "warning" else level.upper())
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    logging.basicConfig(level=level.upper(), format="%(levelname)s %(name)s: %(message)s")
    for name in ("trimtab", "trimtab_models", "trimtab_server"):
        # Said of each, because a library that vLLM imports gives the root vLLM's level.
        logging.getLogger(name).setLevel(level.upper())
    if level == "warning":
        # vLLM warns of much that nobody can change, and so do the libraries it imports.
        logging.getLogger("vllm").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")
