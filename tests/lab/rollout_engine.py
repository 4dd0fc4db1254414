"""Rollouts and searches on one real engine, in a process of its own; prints lines of JSON.

python rollout_engine.py DIRECTORY
"""

import json
import os
import statistics
import sys
from pathlib import Path

from trimtab.logs import configure_logging

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
configure_logging()

import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from vllm.engine.arg_utils import EngineArgs  # noqa: E402

import search_engine  # noqa: E402
from trimtab.adapters.vllm.offline import Sampler, engine_options  # noqa: E402
from trimtab.errors import ScorerFault, TrimtabError  # noqa: E402
from trimtab.params import GuidanceParams  # noqa: E402
from trimtab.sampling import RolloutSampling  # noqa: E402
from trimtab_lab.rollouts.journal import Journal  # noqa: E402
from trimtab_lab.rollouts.prefixes import complete, cut_answers  # noqa: E402
from trimtab_lab.rollouts.prompts import read  # noqa: E402
from trimtab_lab.rollouts.run import roll_out  # noqa: E402
from trimtab_models import demo, rewards  # noqa: E402
from trimtab_server.bases import ENGINE  # noqa: E402

ROOT = Path(sys.argv[1])
REWARD = "trimtab_models.demo.oracles:sentiment"


def say(check, **facts):
    print(json.dumps({"check": check, **facts}), flush=True)


@torch.inference_mode()
def difference(model, prompts, groups):
    """Largest difference between the given log-probabilities and transformers' own, unpadded."""
    worst = 0.0
    for prompt, group in zip(prompts, groups, strict=True):
        for one in group:
            logits = model(torch.tensor([[*prompt, *one.token_ids]])).logits[
                0, len(prompt) - 1 : -1
            ]
            ours = torch.tensor(one.logprobs)
            theirs = logits.float().log_softmax(-1).gather(1, torch.tensor(one.token_ids)[:, None])
            worst = max(worst, float((ours - theirs[:, 0]).abs().max()))
    return worst


def same(first, second):
    pairs = [(a, b) for p, q in zip(first, second, strict=True) for a, b in zip(p, q, strict=True)]
    return sum(a.token_ids == b.token_ids for a, b in pairs) / len(pairs)


def main():
    try:
        EngineArgs()
        say("default model", loaded=True)
    except Exception as error:
        say("default model", loaded=False, error=type(error).__name__)
    faulty = {"path": "faulty_scorers:fails", "family": "function"}
    sampler = Sampler(
        str(demo.base()),
        {**{name: str(path) for name, path in demo.scorers().items()}, "faulty": faulty},
        **{**engine_options(ENGINE["demo"]), "block_size": 32},
    )
    model = AutoModelForCausalLM.from_pretrained(demo.base(), dtype=torch.float32)
    texts = demo.prompts("test", 12, seed=3)
    prompts = [sampler.tokenizer(demo.chat(text)).input_ids for text in texts]
    settings = {"n": 6, "temperature": 0.7, "max_tokens": 48}
    guidance = GuidanceParams(scorers={"sentiment": 1.0}, beta=6.0, tail="mean")

    plain = sampler.sample(prompts, seed=1, **settings)
    guided = sampler.sample(prompts, seed=1, top_p=0.9, params=guidance, **settings)
    say("log-probabilities", difference=difference(model, prompts, plain))
    say("guided log-probabilities", difference=difference(model, prompts, guided))
    everything = [one for group in (*plain, *guided) for one in group]
    eos = sampler.tokenizer.eos_token_id
    say(
        "ends",
        whole=all(len(one.token_ids) == 48 or one.token_ids[-1] == eos for one in everything),
        lengths=all(len(one.token_ids) == len(one.logprobs) for one in everything),
        once=all(eos not in one.token_ids[:-1] for one in everything),
    )
    alone = [sampler.sample([prompts[0]], seed=1, **settings)[0]]
    say(
        "seeds",
        again=same(plain, sampler.sample(prompts, seed=1, **settings)),
        alone=same(plain[:1], alone),
        other=same(plain, sampler.sample(prompts, seed=2, **settings)),
        distinct=len({tuple(one.token_ids) for one in plain[0]}),
    )

    def reward(groups):
        score = demo.rewards["sentiment"]
        decode = sampler.tokenizer.decode
        return statistics.fmean(score("", decode(one.token_ids)) for g in groups for one in g)

    kl = [statistics.fmean(one.kl for group in made for one in group) for made in (plain, guided)]
    say("guidance", plain=reward(plain), guided=reward(guided), kl=kl)

    try:
        sampler.sample(prompts[:2], n=2, seed=0, params=GuidanceParams(scorers={"faulty": 1.0}))
        say("fault", message="")
    except ScorerFault as error:
        say("fault", message=error.message)
    try:
        sampler.sample([[5] * 500], n=1, seed=0, max_tokens=64)
        say("too long", message="")
    except TrimtabError as error:
        say("too long", message=error.message)
    say("after faults", again=same(plain, sampler.sample(prompts, seed=1, **settings)))

    # The command, killed and resumed, must write the same file.
    with Journal(ROOT / "whole.jsonl", {}) as journal:
        sampling = RolloutSampling(n=20, max_tokens=64, seed=4)
        texts = read(ROOT / "prompts.txt", sampler.tokenizer)
        roll_out(sampler, texts, sampling, rewards.load(REWARD), journal)
    cuts = cut_answers(ROOT / "whole.jsonl", [0.5], 40, seed=0)
    with Journal(ROOT / "completed.jsonl", {}) as journal:
        complete(sampler, cuts, RolloutSampling(n=10, max_tokens=65), rewards.load(REWARD), journal)
    search_engine.check(sampler)


if __name__ == "__main__":
    main()
