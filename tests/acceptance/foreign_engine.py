"""Scorers with tokenizers of their own through one real engine; prints lines of JSON.

python foreign_engine.py DIRECTORY
"""

import json
import os
import sys
from pathlib import Path

from trimtab.logs import configure_logging

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
configure_logging()

from trimtab.adapters.vllm.offline import Sampler, engine_options  # noqa: E402
from trimtab.params import GuidanceParams  # noqa: E402
from trimtab_models import demo  # noqa: E402
from trimtab_server.bases import ENGINE  # noqa: E402

ROOT = Path(sys.argv[1])
N, EACH, BETA = 60, 2, 4.0


def main():
    scorers = {
        "deberta": {"path": str(ROOT / "deberta"), "family": "text", "reads": "answer"},
        "roberta": {"path": str(ROOT / "roberta"), "family": "text", "reads": "pair"},
        "pythia": {"path": str(ROOT / "pythia")},
        **{name: {"path": str(path)} for name, path in demo.scorers().items()},
    }
    sampler = Sampler(str(demo.base()), scorers, **engine_options(ENGINE["demo"]))
    prompts = demo.prompts("test", N, seed=3)
    ids = [sampler.tokenizer(demo.chat(p), add_special_tokens=False).input_ids for p in prompts]
    for name in ("base", "deberta", "pythia", "sentiment", "roberta", "formality"):
        params = None
        if name != "base":
            params = GuidanceParams(scorers={name: 1.0}, beta=BETA)
        drawn = sampler.sample(ids, EACH, seed=0, temperature=1.0, max_tokens=64, params=params)
        texts = [
            [sampler.tokenizer.decode(one.token_ids, skip_special_tokens=True) for one in group]
            for group in drawn
        ]
        rewards = {
            reward: [
                sum(of(prompt, text) for text in group) / EACH
                for prompt, group in zip(prompts, texts, strict=True)
            ]
            for reward, of in demo.rewards.items()
        }
        kl = sum(one.kl for group in drawn for one in group) / (N * EACH)
        print(json.dumps({"name": name, "rewards": rewards, "kl": kl}), flush=True)


if __name__ == "__main__":
    main()
