"""How the cost of guidance grows: the sweeps of decode.py.

A base of 42 million parameters, k = 10 candidates, mass 1. One quantity varies, the others are as
in `USUAL`. Networks are scorers of 21 million parameters.
"""

import functools
import tempfile
from pathlib import Path

import torch
from decode_engine import Decoder, rounds, start, summary
from decode_report import USUAL
from kept import Kept
from random_models import PROBES, SCORER, SMALL_BASE, TINY, VOCAB, base_of, probes_of, scorers_of
from tqdm import tqdm
from vllm import LLM

from trimtab.params import GuidanceParams

SWEEPS = {"prefix": (128, 512, 1024, 2048), "rows": (1, 4, 16, 64), "scorers": (1, 2, 4, 8)}
"""With the vocabulary of USUAL; other vocabularies have engines of their own."""
QUICK = {"prefix": (128, 256), "rows": (1, 4), "scorers": (1, 2)}
REPEATS, CACHE_BYTES = 6, 2**31


def measure(part: str, kept: Kept, quick: bool) -> None:
    """All sweeps but that over the vocabulary, or one vocabulary."""
    sizes = (TINY, TINY) if quick else (SMALL_BASE, SCORER)
    if part == "prefix":
        vocab = VOCAB
        sweeps = QUICK if quick else SWEEPS
        settings = [USUAL | {name: x} for name, values in sweeps.items() for x in values]
    else:
        vocab = int(part.removeprefix("vocab-"))
        settings = [USUAL | {"vocab": vocab}]
    largest = {name: max(one[name] for one in settings) for name in USUAL}
    length = largest["prefix"]
    names = [f"network{i}" for i in range(largest["scorers"])]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shapes = {"vocab": vocab, "positions": length + 64}
        base = base_of(root / "base", sizes[0], **shapes)
        scorers = scorers_of(root, names, sizes[1], **shapes) | probes_of(base, root)
        llm = start(
            base,
            scorers,
            CACHE_BYTES,
            max_model_len=length + 64,
            max_num_seqs=largest["rows"],
            max_num_batched_tokens=max(one["rows"] * (one["prefix"] + 1) for one in settings),
        )
        for setting in tqdm(settings, unit="setting"):
            run = functools.partial(compare, llm, names, setting, 2 if quick else REPEATS)
            kept(" ".join(map(str, setting.values())), run)


def compare(llm: LLM, names: list[str], setting: dict, repeats: int) -> list[dict]:
    """Networks and probes, as ratios to the same unguided steps."""
    generator = torch.Generator().manual_seed(1)
    shape = (setting["rows"], setting["prefix"])
    prompts = torch.randint(setting["vocab"], shape, generator=generator).tolist()
    guidances = {
        kind: GuidanceParams(
            scorers=dict.fromkeys(some[: setting["scorers"]], 1.0), beta=1.0, k=10, mass=1.0
        )
        for kind, some in (("network", names), ("probe", PROBES))
    }
    decoder = Decoder(llm, prompts)
    values = rounds(decoder, setting["rows"], guidances, None, repeats)
    return [{**setting, "kind": kind} | summary(columns) for kind, columns in values.items()]
