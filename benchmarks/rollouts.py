"""How fast rollouts are, next to vLLM's own `LLM.generate` on the same engine.

    python benchmarks/rollouts.py [--quick]

64 prompts of the demo world, 8 completions each at temperature 0.7, at most 96 tokens. In turn, in
one process: `LLM.generate` with nothing but the sampling asked for, and whole rollouts as
`trimtab rollout` makes them: a seed for each answer, base log-probabilities, reward, JSON Lines on
disk. Ratio = rollouts' tokens per second ÷ LLM.generate's, the median of paired repeats.
Writes benchmarks/results/rollouts.{json,md}.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1")

from vllm import SamplingParams

from trimtab.draws import Drawing
from trimtab.journal import Journal
from trimtab.offline import Sampler, engine_options
from trimtab.prompts import Prompt
from trimtab.rollout import roll_out
from trimtab_models import demo, rewards
from trimtab_server.demo import ENGINE

RESULTS = Path(__file__).parent / "results"
PROMPTS, N, TEMPERATURE, MAX_TOKENS = 64, 8, 0.7, 96
REWARD = "trimtab_models.demo.oracles:sentiment"


def generate(sampler: Sampler, prompts: list[Prompt]) -> float:
    """Tokens per second of LLM.generate alone."""
    params = SamplingParams(n=N, temperature=TEMPERATURE, max_tokens=MAX_TOKENS)
    began = time.perf_counter()
    inputs = [{"prompt_token_ids": prompt.token_ids} for prompt in prompts]
    outputs = sampler.llm.generate(inputs, params, use_tqdm=False)
    seconds = time.perf_counter() - began
    return sum(len(one.token_ids) for output in outputs for one in output.outputs) / seconds


def rollouts(sampler: Sampler, prompts: list[Prompt], seed: int, folder: Path) -> float:
    """Tokens per second of labelled rollouts, file and all."""
    reward = rewards.load(REWARD)
    path = folder / f"{seed}.jsonl"
    began = time.perf_counter()
    with Journal(path, {}) as journal:
        drawing = Drawing(n=N, temperature=TEMPERATURE, max_tokens=MAX_TOKENS, seed=seed)
        roll_out(sampler, prompts, drawing, reward, journal)
    seconds = time.perf_counter() - began
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(records) == len(prompts) * N
    return sum(len(record["completion_token_ids"]) for record in records) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three repeats; write nothing")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    sampler = Sampler(str(demo.base()), **engine_options(ENGINE))
    prompts = [
        Prompt(text, sampler.tokenizer(demo.chat(text)).input_ids)
        for text in demo.prompts("train", PROMPTS, seed=0)
    ]
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(4 if arguments.quick else 12):
            order = [
                lambda: ("generate", generate(sampler, prompts)),
                lambda repeat=repeat: (
                    "rollouts",
                    rollouts(sampler, prompts, repeat, Path(folder)),
                ),
            ]
            pairs.append(dict(run() for run in (order if repeat % 2 else order[::-1])))
    pairs = pairs[1:]  # the first warms up
    ratios = sorted(pair["rollouts"] / pair["generate"] for pair in pairs)
    result = {
        "tokens_per_second": {
            name: statistics.median(pair[name] for pair in pairs) for name in pairs[0]
        },
        "ratio": statistics.median(ratios),
        "ratio_range": [ratios[0], ratios[-1]],
        "repeats": len(pairs),
        "settings": {"prompts": PROMPTS, "n": N, "max_tokens": MAX_TOKENS, "reward": REWARD},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    text = (
        f"Demo base, {PROMPTS} prompts × {N} completions of at most {MAX_TOKENS} tokens, "
        f"{result['machine']}; medians of {len(pairs)} paired repeats.\n\n"
        "| | tokens per second |\n|---|---|\n"
        f"| `LLM.generate` alone | {result['tokens_per_second']['generate']:.0f} |\n"
        "| rollouts (seeds, base log-probabilities, reward, file) "
        f"| {result['tokens_per_second']['rollouts']:.0f} |\n"
        f"| ratio | {result['ratio']:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |\n"
    )
    print(text)
    if not arguments.quick:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "rollouts.json").write_text(json.dumps(result, indent=1) + "\n")
        (arguments.out / "rollouts.md").write_text(text)


if __name__ == "__main__":
    main()
