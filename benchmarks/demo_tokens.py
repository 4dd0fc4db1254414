"""The demo's greedy answers in six settings, and their comparison with those of another device."""

from decode_engine import demo_prompts, start
from vllm import SamplingParams

from trimtab.params import GuidanceParams
from trimtab.xargs import RECORD_KEY, to_xargs
from trimtab_models import demo

GUIDED = {"beta": 4.0, "k": 32, "mass": 0.99, "trace": True, "tail": "truncate"}
SETTINGS = {
    "unguided": None,
    "guided": GuidanceParams(**GUIDED),
    "guided_mean": GuidanceParams(**{**GUIDED, "tail": "mean"}),
    "sentiment": GuidanceParams(**GUIDED, scorers={"sentiment": 1.0}),
    "long": GuidanceParams(**GUIDED, scorers={"sentiment": 1.0, "formality": 1.0, "brevity": -1.0}),
    "beta0": GuidanceParams(beta=0.0),
}


def answers() -> dict:
    """Tokens, the base's four best log-probabilities, KL and scores of every answer."""
    llm, prompts = start(demo.base(), demo.scorers()), demo_prompts(32)
    llm.collective_rpc("trimtab_scorers")  # this also sets the processor's runner
    requests = [{"prompt_token_ids": prompt} for prompt in prompts]
    runs: dict[str, list[dict]] = {}
    for name, params in SETTINGS.items():
        extra = to_xargs(params) if params else None
        sampling = [
            SamplingParams(
                temperature=0.0,
                max_tokens=48,
                detokenize=False,
                logprobs=4,
                extra_args={**extra, RECORD_KEY: f"{name}-{i}"} if params else None,
            )
            for i in range(len(prompts))
        ]
        runs[name] = []
        for i, output in enumerate(llm.generate(requests, sampling, use_tqdm=False)):
            [choice] = output.outputs
            row = {"tokens": list(choice.token_ids)}
            row["base"] = [[(t, v.logprob) for t, v in step.items()] for step in choice.logprobs]
            if params:
                call = (f"{name}-{i}", prompts[i], [row["tokens"]], True)
                [[record]] = llm.collective_rpc("trimtab_record", args=call)
                row |= {field: record.get(field) for field in ("kl", "error", "trace")}
            runs[name].append(row)
    return {"prompts": prompts, "runs": runs}


def compare(reference: dict, here: dict) -> list[dict]:
    """By setting: equal answers, and the largest differences up to the first other token."""
    if reference["prompts"] != here["prompts"]:
        raise SystemExit("the reference has other prompts: make it with this version of the demo")
    results = []
    for name, rows in here["runs"].items():
        pairs = list(zip(reference["runs"][name], rows, strict=True))
        kl, scores, base = [], [], []
        for a, b in pairs:
            if a["tokens"] == b["tokens"] and a.get("kl") is not None:
                kl.append(abs(a["kl"] - b["kl"]))
            both = enumerate(zip(a["tokens"], b["tokens"], strict=False))
            end = 1 + next((n for n, (x, y) in both if x != y), len(b["tokens"]))
            for x, y in zip(a["base"][:end], b["base"][:end], strict=False):
                base += differences(dict(x), dict(y))
            for x, y in zip((a.get("trace") or [])[:end], b.get("trace") or [], strict=False):
                for scorer, values in x["scores"].items():
                    theirs = dict(zip(x["candidates"], values, strict=True))
                    ours = dict(zip(y["candidates"], y["scores"].get(scorer, ()), strict=False))
                    scores += differences(theirs, ours)
        results.append(
            {
                "setting": name,
                "answers": len(pairs),
                "equal": sum(a["tokens"] == b["tokens"] for a, b in pairs),
                "faults": sum(bool(b.get("error")) for _, b in pairs),
                "kl": max(kl, default=None),
                "scores": max(scores, default=None),
                "base_logprobs": max(base, default=None),
            }
        )
    return results


def differences(a: dict[int, float], b: dict[int, float]) -> list[float]:
    return [abs(a[token] - b[token]) for token in a.keys() & b.keys()]
