"""What a probe needs of its base's weights, read from safetensors: identity, output embedding."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from trimtab_models import pretrained
from trimtab_models.files import INDEX, WEIGHTS, Unusable, read_json

SAMPLED = 64
"""Numbers of each weight that its base's fingerprint covers."""


@lru_cache(maxsize=8)
def fingerprint(source: str | Path) -> str:
    """Hash of a base's weights: their names, shapes and first numbers, in bfloat16.

    The same base, stored in another precision or in other files, has the same one.

    Raises:
        FileNotFoundError: there is no such base, or it has no weights in safetensors.
        Unusable: its files are damaged.
    """
    known = hashlib.sha256()
    for name, file in sorted(_places(source).items()):
        if name.startswith("lm_head."):
            continue  # stored by some and not by others, where it is tied to the input embedding
        try:
            with safe_open(file, "pt") as opened:
                part = opened.get_slice(name)
                shape = part.get_shape()
                first = part[:1] if shape else opened.get_tensor(name)
        except Exception as error:
            raise Unusable(f"{source}: {Path(file).name} is damaged.") from error
        numbers = first.flatten()[:SAMPLED].to(torch.bfloat16).float()
        known.update(f"{name} {shape} {numbers.tolist()}\n".encode())
    return known.hexdigest()[:32]


def output_embedding(source: str | Path) -> Tensor:
    """The output embedding of a base, [vocab, hidden] float32 on the host.

    Raises:
        as `fingerprint`, and Unusable: the base has none under the names of its class.
    """
    places = _places(source)
    name = next((name for name in _names(source) if name in places), None)
    if name is None:
        raise Unusable(
            f"{source} has no plain output embedding in its safetensors; quantised ones cannot be "
            "read."
        )
    with safe_open(places[name], "pt") as opened:
        weight: Tensor = opened.get_tensor(name)
    return weight.float()


def _names(source: str | Path) -> list[str]:
    """Names of the output embedding's weight, and of the input embedding's if they are tied."""
    config: Any = pretrained.configuration(source)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    wanted = [model.get_output_embeddings()]
    if config.get_text_config().tie_word_embeddings:
        wanted.append(model.get_input_embeddings())
    names = [name for one in wanted for name, module in model.named_modules() if module is one]
    prefix = f"{model.base_model_prefix}."
    plain = [name.removeprefix(prefix) for name in names]  # saved from the backbone alone
    return [f"{name}.weight" for name in dict.fromkeys([*names, *plain])]


def _places(source: str | Path) -> Mapping[str, Path]:
    """The file of each weight, by its name."""
    whole, index = pretrained.file(source, WEIGHTS), pretrained.file(source, INDEX)
    if whole is not None:
        try:
            with safe_open(whole, "pt") as opened:
                return dict.fromkeys(opened.keys(), whole)
        except Exception as error:
            raise Unusable(f"{source}: {WEIGHTS} is damaged.") from error
    shards = read_json(index).get("weight_map") if index is not None else None
    if not isinstance(shards, dict):
        raise FileNotFoundError(f"{source} has no weights in safetensors.")
    files = {shard: pretrained.file(source, str(shard)) for shard in set(shards.values())}
    missing = sorted(str(shard) for shard, file in files.items() if file is None)
    if missing:
        raise Unusable(f"{source} lacks its file {missing[0]}.")
    return {str(name): Path(str(files[shard])) for name, shard in shards.items()}
