"""Rewarded Soups: one policy for several rewards, by averaging the weights of several policies.

θ = Σ_i λ_i·θ_i, Σ_i λ_i = 1, of policies that were tuned from one base, each for a different
reward. Source: Ramé et al., "Rewarded soups", section 2.2 (arXiv 2306.04488).
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from trimtab_models import networks, pretrained
from trimtab_models.training import saves


def soup(paths: Sequence[str | Path], weights: Sequence[float], out: str | Path) -> Path:
    """Write the weighted mean of policies; an existing directory is not changed.

    Args:
        paths: directories of language models of one shape; the tokenizer is the first one's.
        weights: λ of each.
        out: directory of the new policy.

    Raises:
        ValueError: the λ do not sum to 1, or the models differ in shape.
        SaveFailed: it could not be written.
    """
    target = Path(out)
    if target.exists():
        return target
    if len(paths) != len(weights) or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise ValueError(f"a soup needs one weight per policy, with sum 1; not {list(weights)}.")
    model = networks.build("language", paths[0], dtype=torch.float32)
    mean = {name: weights[0] * value for name, value in model.state_dict().items()}
    for path, weight in zip(paths[1:], weights[1:], strict=True):
        other = networks.build("language", path, dtype=torch.float32).state_dict()
        if {k: v.shape for k, v in other.items()} != {k: v.shape for k, v in mean.items()}:
            raise ValueError(f"{path} and {paths[0]} are not models of one shape.")
        for name, value in other.items():
            mean[name] += weight * value
    model.load_state_dict(mean)
    with saves.placing(target) as part:
        model.save_pretrained(part)
        pretrained.tokenizer(paths[0]).save_pretrained(part)
    return target
