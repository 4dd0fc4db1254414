"""How many draft tokens would be accepted if the draft model were guided, too?

    python benchmarks/guided_draft.py [--prompts 96] [--out DIR]

vLLM has no extension point that guides a draft model, so the rate is computed. Rejection sampling
(Leviathan et al., arXiv 2211.17192) accepts a token drawn from q, where the guided base gives p,
with probability Σ_v min(p(v), q(v)); it accepts q's most likely token v*, vLLM's default draft,
with probability p(v*). p and q are compared at every token of answers of the guided base at
temperature 1: draft tokens are verified after accepted ones only, so their prefixes are such text.

The base is that of the demo. The draft model has the sizes of the demo's scorers, and has learned
from a tenth of the base's documents, with the same tokenizer. It drafts unguided, and guided with
the same β and candidates: by a probe of its own states, where a probe of the base's states guides
the base, and by the same network, where the demo's sentiment scorer guides the base. Both probes
learn from the same answers, those of probe_refinement.py.

An answer's figure is the mean over its tokens; the table has mean ± standard error over answers, of
which each prompt has one. Differences are paired. Writes benchmarks/results/guided_draft.{json,md}.
Takes six minutes on one core; an interrupted run resumes from .work/guided-draft.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import probe_refinement
import torch
from scipy import stats
from torch import Tensor
from transformers import LlamaForCausalLM, LogitsProcessor, LogitsProcessorList, set_seed

from trimtab.local import Guidance
from trimtab_models import demo, networks, pretrained, training
from trimtab_models.demo import corpus, language_model

RESULTS = Path(__file__).parent / "results"
WORK = Path(__file__).parents[1] / ".work" / "guided-draft"
DOCUMENTS, SEED, MAX_TOKENS = 4000, 0, 48
BETAS = (0.0, 1.0, 2.0, 4.0)
SCORERS = {"probe": "a probe", "network": "the network `sentiment`"}
DRAFTS = {"sampled": "Σ min(p, q)", "greedy": "p of q's most likely token"}


def train_draft(out: Path) -> None:
    """A smaller model of the demo's texts, with the base's tokenizer."""
    tokenizer = pretrained.tokenizer(demo.base())
    texts = corpus.documents(tokenizer, DOCUMENTS, SEED + 1)
    items = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    set_seed(SEED)
    model = LlamaForCausalLM(language_model.config(tokenizer, **language_model.SCORER_SIZES))

    def collate(chosen: list[list[int]]) -> dict[str, Tensor]:
        rows = [torch.tensor(ids) for ids in chosen]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        real = padded >= 0
        ids = padded.where(real, tokenizer.pad_token_id)
        return {"input_ids": ids, "attention_mask": real.long(), "labels": padded}

    training.fit(
        model,
        items,
        collate,
        lambda network, batch: network(**batch).loss,
        WORK / "training",
        epochs=1,
        batch_size=32,
        learning_rate=3e-3,
        seed=SEED,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    training.clear(WORK / "training")


def prepare() -> dict[str, Path]:
    """The draft model, and a probe of each model."""
    paths = {"draft": WORK / "draft", "base": demo.base()}
    if not (paths["draft"] / "tokenizer.json").exists():
        train_draft(paths["draft"])
    probe_refinement.WORK.mkdir(parents=True, exist_ok=True)
    answers = probe_refinement.base_answers()
    for name in ("base", "draft"):
        probe = WORK / f"probe-{name}"
        if not (probe / "config.json").exists():
            fields = {"base": str(paths[name]), "data": str(answers), "seed": SEED}
            probe_refinement.train(probe, {**probe_refinement.SETTINGS["first"], **fields})
        paths[f"probe of {name}"] = probe
    return paths


class Compared(LogitsProcessor):
    """Guides the base in `generate`, and compares each step's p with the draft model's q."""

    def __init__(
        self, inputs: Any, guides: dict[str, LogitsProcessorList], draft: Any, eos: int
    ) -> None:
        """guides: of the base and of the draft model; none without guidance."""
        self.mask, self.start = inputs.attention_mask, inputs.input_ids.shape[1]
        self.guides, self.draft, self.eos = guides, draft, eos
        self.steps: list[dict[str, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        answered = input_ids[:, self.start :]
        mask = torch.cat((self.mask, torch.ones_like(answered)), 1)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        output = self.draft(
            input_ids=input_ids, attention_mask=mask, position_ids=places, use_cache=False
        )
        plain = output.logits[:, -1].float()
        guided, drafted = scores, plain
        if self.guides:
            guided = self.guides["base"](input_ids, scores)
            drafted = self.guides["draft"](input_ids, plain)
        step = {"active": ~(answered == self.eos).any(1)}
        p = guided.softmax(-1)
        for name, logits in (("unguided", plain), ("guided", drafted)):
            q = logits.softmax(-1)
            step[f"sampled {name}"] = torch.minimum(p, q).sum(-1)
            step[f"greedy {name}"] = p.gather(1, q.argmax(-1, keepdim=True))[:, 0]
        self.steps.append(step)
        return guided

    def means(self) -> dict[str, list[float]]:
        """Of each answer, the mean over its tokens."""
        active = torch.stack([step.pop("active") for step in self.steps], 1)  # [answers, steps]
        return {
            name: (
                (torch.stack([step[name] for step in self.steps], 1) * active).sum(1)
                / active.sum(1)
            ).tolist()
            for name in self.steps[0]
        }


@torch.inference_mode()
def measure(paths: dict[str, Path], scorer: str, beta: float, prompts: int) -> dict:
    tokenizer = pretrained.tokenizer(demo.base())
    tokenizer.padding_side = "left"
    texts = [demo.chat(text) for text in demo.prompts("test", prompts, SEED)]
    inputs = tokenizer(texts, add_special_tokens=False, return_tensors="pt", padding=True)
    models = {
        name: networks.build("language", paths[name], dtype=torch.float32).eval()
        for name in ("base", "draft")
    }
    guides = {}
    for name in models if beta else ():
        path = paths[f"probe of {name}"] if scorer == "probe" else demo.scorers()["sentiment"]
        guidance = Guidance(
            {"one": str(path)}, tokenizer, model=models[name], max_length=256, beta=beta
        )
        guides[name] = guidance.processors(**inputs)
    compared = Compared(inputs, guides, models["draft"], tokenizer.eos_token_id)
    torch.manual_seed(SEED)
    models["base"].generate(
        input_ids=inputs.input_ids,
        attention_mask=inputs.attention_mask,
        logits_processor=LogitsProcessorList([compared]),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=MAX_TOKENS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return {"scorer": scorer, "beta": beta, **compared.means()}


def table(results: list[dict]) -> str:
    count = len(results[0]["sampled guided"])
    lines = [
        f"How likely a draft token is accepted, on the demo: {count} prompts, one answer each, "
        f"seed {SEED}; means ± standard errors over answers; see guided_draft.py. *p* is the "
        "guided base, *q* the draft model, whose guidance is the same but for its probe, which "
        "reads its own states.",
        "",
        "| guided by | β | draft token | draft unguided | draft guided | difference |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        for kind, title in DRAFTS.items():
            plain, own = np.array(r[f"{kind} unguided"]), np.array(r[f"{kind} guided"])
            cells = [SCORERS[r["scorer"]] if r["beta"] else "nothing", f"{r['beta']:g}"]
            cells.append("sampled: " + title if kind == "sampled" else "the likeliest: p(v*)")
            for values in (plain, own, own - plain):
                sign = "+" if values is not plain and values is not own else ""
                cells.append(f"{values.mean():{sign}.3f} ± {stats.sem(values):.3f}")
            if not r["beta"]:
                cells[-2:] = ["–", "–"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    paths = prepare()
    results = []
    for scorer in SCORERS:
        for beta in BETAS if scorer == "probe" else BETAS[1:]:
            file = WORK / f"{scorer}-{beta:g}-{arguments.prompts}.json"
            if not file.exists():
                result = measure(paths, scorer, beta, arguments.prompts)
                file.write_text(json.dumps(result) + "\n")
            results.append(json.loads(file.read_text()))
    text = table(results)
    print(text)
    (arguments.out / "guided_draft.json").write_text(json.dumps(results) + "\n")
    (arguments.out / "guided_draft.md").write_text(text)


if __name__ == "__main__":
    main()
