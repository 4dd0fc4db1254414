"""Draft tokens that speculative decoding accepts in a step, guided and not.

    python benchmarks/speculation.py [--answers 24] [--tokens 32] [--out DIR]

The base of the demo answers its prompts at temperature 1 in vLLM's Model Runner V2, through
Triton's interpreter, 8 at a time, with three draft tokens a step: by n-grams, and by a draft model
that always drafts its most likely token. The draft model is the base itself, so what guidance costs
is seen alone. An answer's figure is the mean of its accepted draft tokens per step; the table has
mean and standard error over answers. Writes benchmarks/results/speculation.md.
"""

import argparse
import gc
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import runners

if __name__ == "__main__":
    runners.use("v2")

import numpy as np
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from trimtab.adapters.vllm.offline import Sampler
from trimtab.params import GuidanceParams
from trimtab.xargs import to_xargs
from trimtab_models import demo

RESULTS = Path(__file__).parent / "results"
DRAFTS, ROWS, SEED = 3, 8, 0
BETAS = (0.0, 1.0, 2.0, 4.0)
METHODS: dict[str, dict[str, Any]] = {
    "n-grams": {"method": "ngram", "prompt_lookup_max": 3, "prompt_lookup_min": 1},
    "draft model": {
        "method": "draft_model",
        "model": str(demo.base()),
    },
}


def accepted(sampler: Sampler, beta: float, answers: int, tokens: int) -> list[float]:
    """Accepted draft tokens per step, of each answer."""
    guidance = GuidanceParams(scorers={"sentiment": 1.0}, beta=beta)
    prompts = demo.prompts("test", answers)
    for i in range(answers):
        text = demo.chat(prompts[i])
        params = SamplingParams(
            temperature=1.0,
            seed=SEED + i,
            max_tokens=tokens,
            extra_args=to_xargs(guidance) if beta else None,
            output_kind=RequestOutputKind.DELTA,
        )
        ids = sampler.tokenizer.encode(text, add_special_tokens=False)
        sampler.engine.add_request(f"{beta}-{i}", {"prompt_token_ids": ids}, params)
    taken: dict[str, list[int]] = defaultdict(list)  # tokens of each step
    while sampler.engine.has_unfinished_requests():
        for output in sampler.engine.step():
            taken[output.request_id].append(len(output.outputs[0].token_ids))
    # The first step has no draft tokens, and the last one ends within them.
    return [float(np.mean(steps[1:-1])) - 1 for steps in taken.values() if len(steps) > 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--answers", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    lines = ["| drafts | β | accepted draft tokens per step | answers |", "|---|---|---|---|"]
    for name, method in METHODS.items():
        sampler = Sampler(
            str(demo.base()),
            {"sentiment": str(demo.scorers()["sentiment"])},
            dtype="float32",
            enforce_eager=True,
            max_num_seqs=ROWS,
            max_model_len=256,
            disable_log_stats=True,
            speculative_config={**method, "num_speculative_tokens": DRAFTS},
        )
        for beta in BETAS:
            means = np.array(accepted(sampler, beta, args.answers, args.tokens))
            error = means.std(ddof=1) / len(means) ** 0.5
            lines.append(f"| {name} | {beta:g} | {means.mean():.2f} ± {error:.2f} | {len(means)} |")
            print(lines[-1], flush=True)
        del sampler
        gc.collect()
    args.out.mkdir(exist_ok=True)
    (args.out / "speculation.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
