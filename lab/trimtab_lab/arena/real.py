"""Rollouts of a real base, by vLLM's offline engine: plain transformers would take an hour."""

import os
from pathlib import Path

from trimtab_lab.arena.scale import Scale
from trimtab_lab.arena.task import load
from trimtab_lab.worlds import build
from trimtab_models import data


def roll_out(spec: str, path: Path, scale: Scale) -> None:
    """Write labelled answers of the base to training prompts, in the form of `build.roll_out`.

    Args:
        spec: name of a real world.
        path: of the new file, in the arena's directory.
        scale: `completions` answers to each of `rollout_prompts` prompts.
    """
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    from trimtab.adapters.vllm.offline import Sampler

    task = load(spec)
    world = task.world
    sampler = Sampler(str(build.build_base(world, path.parent)), **task.engine)
    texts = world.prompts("train", scale.rollout_prompts, scale.seed)
    prompts = [sampler.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    groups = sampler.sample(
        prompts,
        scale.completions,
        seed=scale.seed,
        temperature=1.0,
        max_tokens=world.max_tokens,
    )
    records = []
    for turn in range(scale.completions):  # completions of one prompt are not adjacent
        for text, ids, group in zip(texts, prompts, groups, strict=True):
            answer = group[turn].token_ids
            completion = sampler.tokenizer.decode(answer, skip_special_tokens=True)
            records.append(
                {
                    "prompt": text,
                    "completion": completion,
                    "prompt_token_ids": ids,
                    "completion_token_ids": answer,
                    "rewards": {name: f(text, completion) for name, f in world.rewards.items()},
                }
            )
    data.write(path, records)
