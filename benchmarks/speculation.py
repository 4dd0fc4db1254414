"""Draft tokens that speculative decoding accepts in a step, guided and not.

    python benchmarks/speculation.py [--answers 24] [--tokens 32] [--out DIR]

The base of the demo answers its prompts at temperature 1 in vLLM's Model Runner V2, through
Triton's interpreter, 8 at a time, with three draft tokens a step: by n-grams, and by a draft model
that drafts its most likely token, or samples. The draft model is the base itself, so what guidance
costs is seen alone. An answer's figure is the mean of its accepted draft tokens per step; the table
has mean and standard error over answers.

Tokens at places where draft tokens were verified must have the guided distribution, which the
plain reference of the tests computes: the table has two tests of tests/sampled.py, and as a control
one of the base's distribution. Writes benchmarks/results/speculation.md. Takes 20 minutes
on one core; an interrupted run resumes from .work/speculation.json.
"""

import argparse
import gc
import sys
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import runners

if __name__ == "__main__":
    runners.use("v2")

import numpy as np
import torch
from kept import Kept
from reference import Reference
from sampled import Places, remember_drafts
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from trimtab.adapters.vllm.offline import Sampler
from trimtab.params import GuidanceParams
from trimtab.xargs import to_xargs
from trimtab_models import demo, networks

RESULTS = Path(__file__).parent / "results"
WORK = Path(__file__).parents[1] / ".work" / "speculation.json"
DRAFTS, ROWS, SEED = 3, 8, 0
BETAS = (0.0, 1.0, 2.0, 4.0)
METHODS: dict[str, dict[str, Any]] = {
    "n-grams": {"method": "ngram", "prompt_lookup_max": 3, "prompt_lookup_min": 1},
    "draft model, its most likely tokens": {"method": "draft_model", "model": str(demo.base())},
    "draft model, sampled tokens": {
        "method": "draft_model",
        "model": str(demo.base()),
        "draft_sample_method": "probabilistic",
    },
    "draft model, sampled tokens, verified as a block": {
        "method": "draft_model",
        "model": str(demo.base()),
        "draft_sample_method": "probabilistic",
        "rejection_sample_method": "block",
    },
}


def guidance_of(beta: float) -> GuidanceParams:
    return GuidanceParams(scorers={"sentiment": 1.0}, beta=beta)


def answers_of(sampler: Sampler, beta: float, count: int, tokens: int) -> list[dict[str, Any]]:
    """The tokens of each step, of each answer, after its prompt."""
    prompts = demo.prompts("test", count)
    answers: dict[str, dict[str, Any]] = {}
    for i in range(count):
        params = SamplingParams(
            temperature=1.0,
            seed=SEED + i,
            max_tokens=tokens,
            extra_args=to_xargs(guidance_of(beta)) if beta else None,
            output_kind=RequestOutputKind.DELTA,
        )
        ids = sampler.tokenizer.encode(demo.chat(prompts[i]), add_special_tokens=False)
        answers[f"{beta}-{i}"] = {"prompt": ids, "steps": []}
        sampler.engine.add_request(f"{beta}-{i}", {"prompt_token_ids": ids}, params)
    while sampler.engine.has_unfinished_requests():
        for output in sampler.engine.step():
            answers[output.request_id]["steps"].append(list(output.outputs[0].token_ids))
    return list(answers.values())


def measure(
    sampler: Sampler, reference: Reference, beta: float, count: int, tokens: int, sampled: bool
) -> dict[str, Any]:
    """Accepted draft tokens per step of each answer, and both p-values."""
    known = remember_drafts()
    answers = answers_of(sampler, beta, count, tokens)
    places = Places(reference)
    for answer in answers:
        prompt, text = answer["prompt"], [t for step in answer["steps"] for t in step]
        for i, token in enumerate(text):
            prefix = [*prompt, *text[:i]]
            if (draft := known.get(tuple(prefix))) is not None:
                # A draft token that was sampled is no order that is known before.
                first = None if sampled else draft
                places.add(prefix, token, guidance_of(beta), len(prompt), first)
    # The first step has no draft tokens, and the last one ends within them.
    taken = [[len(step) for step in answer["steps"][1:-1]] for answer in answers]
    result: dict[str, Any] = {
        "accepted": [float(np.mean(steps)) - 1 for steps in taken if steps],
        "tokens": len(places),
    }
    if len(places):  # unguided requests are not followed
        result |= {"p": places.p_value(), "z": places.z(), "control": places.z("base")}
    return result


def row(name: str, beta: float, result: dict[str, Any]) -> str:
    means = np.array(result["accepted"])
    error = means.std(ddof=1) / len(means) ** 0.5
    cells = [name, f"{beta:g}", f"{means.mean():.2f} ± {error:.2f}", str(len(means))]
    tests = ["–"] * 4
    if result["tokens"]:
        tests = [str(result["tokens"]), f"{result['p']:.2f}"]
        tests += [f"{result['z']:+.1f}", f"{result['control']:+.1f}"]
    return "| " + " | ".join(cells + tests) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--answers", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    kept = Kept(WORK)
    base = networks.build("language", demo.base(), dtype=torch.float32)
    reference = Reference(base, {"sentiment": demo.scorers()["sentiment"]})
    lines = [
        "The base of the demo, guided by its sentiment scorer, at temperature 1, three draft "
        "tokens a step; means ± standard errors over answers; see speculation.py. Where draft "
        "tokens were verified, do tokens follow the guided distribution? *p*: of a chi-square "
        "test; *z*: of their log-ratios, in standard deviations; *control*: z of the base's "
        "distribution instead.",
        "",
        "| drafts | β | accepted draft tokens per step | answers | tokens | p | z | control |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, method in METHODS.items():
        labels = {beta: f"{name}, {beta:g}, {args.answers}, {args.tokens}" for beta in BETAS}
        sampler = None
        if any(label not in kept.known for label in labels.values()):
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
        sampled = "draft_sample_method" in method
        for beta, label in labels.items():
            run = partial(measure, sampler, reference, beta, args.answers, args.tokens, sampled)
            lines.append(row(name, beta, kept(label, run)))
            print(lines[-1], flush=True)
        del sampler, run  # an engine that ends later would end what the next one shares with it
        gc.collect()
    args.out.mkdir(exist_ok=True)
    (args.out / "speculation.md").write_text("\n".join(lines) + "\n")
    WORK.unlink()  # the next run measures anew


if __name__ == "__main__":
    main()
