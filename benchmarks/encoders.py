"""Encoders and networks with another tokenizer, trained here on truncated texts, steer the demo.

    python benchmarks/encoders.py

The reward is sentiment. Pairs of the base's own answers train a DeBERTa-v2 and a GPT-NeoX, each of
two layers, random weights and a tokenizer of its own (trimtab_models.demo.foreign), by
`trimtab train bradley-terry` with two drawn prefixes a pair; and the DeBERTa-v2 on whole pairs
alone, with as many texts. Each steers the base on 200 test prompts, one answer each, beside the
unguided base. Writes benchmarks/results/encoders.{json,md}. An interrupted run resumes from
.work/encoders. Takes ten minutes on one core.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import set_seed

from trimtab.params import GuidanceParams
from trimtab_lab.arena import workers
from trimtab_lab.arena.stats import at_kl, estimate, paired
from trimtab_models import checkpoint, data, demo, networks, pretrained
from trimtab_models.demo import foreign, rollouts
from trimtab_models.training import saves

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
WORK = ROOT / ".work" / "encoders"
REWARD = demo.rewards["sentiment"]
SEED = 0
TRAIN_PROMPTS, COMPLETIONS, PAIRS, SHARPNESS = 512, 6, 3000, 2.0
PROMPTS, MAX_TOKENS, KL = 200, 96, 1.0
BETAS = (1.0, 2.0, 4.0)
ENGINE = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 256}
SHARED = {"batch_size": 32, "learning_rate": 2e-3, "seed": SEED, "validation": 0.05}
ARMS: dict[str, dict[str, Any]] = {
    "DeBERTa-v2, prefixes": {"scorer": "deberta", "epochs": 2, "texts.rows": 2},
    "DeBERTa-v2, whole pairs": {"scorer": "deberta", "epochs": 4},
    "GPT-NeoX, prefixes": {"scorer": "pythia", "epochs": 2, "texts.rows": 2},
}
"""Settings of each training; the first and the second read as many texts."""


def pairs() -> Path:
    """Preferences between the base's answers to the training prompts."""
    path = WORK / "pairs.jsonl"
    if not path.exists():
        tokenizer = pretrained.tokenizer(demo.base())
        model = networks.build("language", demo.base(), dtype=torch.float32)
        prompts = rollouts.training_prompts(tokenizer, TRAIN_PROMPTS, SEED) * COMPLETIONS
        records = rollouts.label(rollouts.sample(model, tokenizer, prompts, SEED), REWARD)
        data.write(path, data.preferences(records, PAIRS, SEED, SHARPNESS))
    return path


def initial(kind: str) -> Path:
    """A network of random weights with its tokenizer."""
    path = WORK / kind
    if not path.exists():
        set_seed(SEED)
        model, tokenizer = {"deberta": foreign.deberta, "pythia": foreign.pythia}[kind]()
        with saves.placing(path) as part:
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
    return path


def directory(arm: str) -> Path:
    """Where an arm's scorer is."""
    return WORK / arm.lower().replace(", ", "-").replace(" ", "-")


def train(arm: str, source: Path) -> None:
    """Train an arm as `trimtab train` does, and write the seconds that it took."""
    from trimtab_models.training.config import load
    from trimtab_models.training.run import run

    settings = dict(ARMS[arm])
    objective = "bradley-terry" if "texts.rows" in settings else "bradley-terry-full"
    settings["scorer"] = str(initial(settings["scorer"]))
    fields = {"base": "demo", "data": str(source), "out": str(directory(arm)), **SHARED, **settings}
    start = time.monotonic()
    run(load(None, [f"{key}={json.dumps(value)}" for key, value in fields.items()], objective))
    seconds = WORK / f"{directory(arm).name}.seconds"
    seconds.write_text(f"{time.monotonic() - start:.1f}")


def steer(path: Path) -> None:
    """Write reward and KL of every answer: {arm or "base": [{"beta", "reward", "kl"}]}."""
    from trimtab.adapters.vllm.offline import Sampler

    scorers = {directory(arm).name: str(directory(arm)) for arm in ARMS}
    sampler = Sampler(str(demo.base()), scorers, **ENGINE)
    texts = [demo.chat(prompt) for prompt in demo.prompts("test", PROMPTS, seed=5)]
    ids = [sampler.tokenizer(text, add_special_tokens=False).input_ids for text in texts]

    def measured(name: str, beta: float) -> dict[str, Any]:
        params = GuidanceParams(scorers={name: 1.0}, beta=beta)
        start = time.monotonic()
        groups = sampler.sample(
            ids, 1, seed=SEED, temperature=1.0, max_tokens=MAX_TOKENS, params=params
        )
        answers = [group[0] for group in groups]
        written = [sampler.tokenizer.decode(a.token_ids, skip_special_tokens=True) for a in answers]
        return {
            "beta": beta,
            "reward": [round(REWARD(t, w), 5) for t, w in zip(texts, written, strict=True)],
            "kl": [round(answer.kl, 5) for answer in answers],
            "tokens": sum(len(answer.token_ids) for answer in answers),
            "seconds": round(time.monotonic() - start, 1),
        }

    results = {"base": [measured(next(iter(scorers)), 0.0)]}
    for arm in ARMS:
        results[arm] = [measured(directory(arm).name, beta) for beta in BETAS]
    path.write_text(json.dumps(results))


def table(results: dict[str, Any], trained: dict[str, Any]) -> str:
    """The results as text."""
    [base] = results["base"]
    unguided = np.array(base["reward"])
    mean = estimate(unguided)
    lines = [
        "# Encoders and other tokenizers",
        "",
        f"`python benchmarks/encoders.py`. Sentiment on the demo: {PROMPTS} test prompts, one "
        f"answer each, at most {MAX_TOKENS} tokens, temperature 1, seed {SEED} of the pairs, the "
        f"draws, the training and the answers. {PAIRS:,} pairs of the base's own answers, judged "
        f"with a sharpness of {SHARPNESS:g}; 5 % of the prompts held out for prefix-AUC. Networks "
        "of two layers of 64 units from random weights. Each arm reads as many texts. Default "
        f"candidates. Reward ± s.e. over prompts; the base has {mean.mean:.3f} ± "
        f"{mean.standard_error:.3f}. "
        "Differences to the base are paired by prompt, with 95 % bootstrap intervals and "
        "Student's one-sided p.",
        "",
        "| scorer | prefix-AUC | training, s | "
        + " | ".join(f"β = {beta:g}: reward, KL in nats" for beta in BETAS)
        + f" | reward at {KL:g} nat | less the base | p |",
        "|---|---|---|" + "---|" * (len(BETAS) + 3),
    ]
    values = {}
    for arm in ARMS:
        cells = []
        for one in results[arm]:
            reward = estimate(np.array(one["reward"]))
            cells.append(
                f"{reward.mean:.3f} ± {reward.standard_error:.3f}, {np.mean(one['kl']):.2f}"
            )
        points = [(np.array(p["reward"]), np.array(p["kl"])) for p in [base, *results[arm]]]
        at_one = values[arm] = at_kl(points, KL)
        assert at_one is not None
        reward, gain = estimate(at_one), paired(at_one, unguided, read=True)
        lines.append(
            f"| {arm} | {trained[arm]['auc']:.3f} | {trained[arm]['seconds']:.0f} | "
            f"{' | '.join(cells)} | {reward.mean:.3f} ± {reward.standard_error:.3f} | "
            f"{gain.difference:+.3f} [{gain.low:.3f}, {gain.high:.3f}] | {gain.p:.1e} |"
        )
    first, second, _ = ARMS
    gain = paired(values[first], values[second], read=True)
    lines += [
        "",
        f"{first}, less {second}, at {KL:g} nat: {gain.difference:+.3f} [{gain.low:.3f}, "
        f"{gain.high:.3f}], p = {gain.p:.1e}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    WORK.mkdir(parents=True, exist_ok=True)
    source, answers = pairs(), WORK / "answers.json"
    trained = {}
    for arm in ARMS:
        seconds = WORK / f"{directory(arm).name}.seconds"
        if not seconds.exists():
            train(arm, source)
        info = checkpoint.read_info(directory(arm))
        trained[arm] = {"seconds": float(seconds.read_text()), "auc": info.prefix_auc}
    if not answers.exists():
        with workers.pool(1) as pool:  # an engine ends with its process
            pool.submit(steer, answers).result()
    results = json.loads(answers.read_text())
    text = table(results, trained)
    print(text)
    runs = {"trained": trained, "answers": results}
    (RESULTS / "encoders.json").write_text(json.dumps(runs) + "\n")
    (RESULTS / "encoders.md").write_text(text)


if __name__ == "__main__":
    main()
