"""Q heads on the demo: their targets, their form, and how many candidates they may score.

    python benchmarks/q_heads.py

The questions of VAS, appendix B.2, in small: exact or sampled backups, one-step targets or
λ-returns, a plain head or V and A as a sum or centred, and k = 10, 200, and the whole vocabulary of
1,024 tokens. All heads learn one reward (sentiment, in [−1, 1]) from the same rollouts of the base,
on the base's two lower layers; a plain value (`td-lambda`) stands beside them. Then each steers the
base on the same prompts at three β. The KL is summed over the whole vocabulary. An interrupted run
resumes from .work/q-heads; one arm takes about two minutes on one core.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from served import MAX_TOKENS, mean_se
from tqdm import tqdm
from transformers import AutoTokenizer, DynamicCache

from trimtab import Guidance
from trimtab.rows import Row
from trimtab_lab.arena.stats import at_kl, paired
from trimtab_models import checkpoint, data, demo, networks
from trimtab_models.demo import rollouts, world
from trimtab_models.training.config import TrainConfig
from trimtab_models.training.run import run

RESULTS = Path(__file__).parent / "results"
WORK = Path(__file__).parents[1] / ".work" / "q-heads"
REWARD, SEED = "sentiment", 11
TRAIN_PROMPTS, HELD_OUT, COMPLETIONS = 512, 64, 8
PROMPTS = 200
KS: tuple[int | str, ...] = (10, 200, "all")
BETAS = (2.0, 4.0, 8.0)
KL = 1.0  # nats per answer at which arms are compared
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "exact, λ = 0": ("q-exact", {}),
    "exact, λ = 0.95": ("q-exact", {"decay": 0.95}),
    "sampled, λ = 0": ("q-sampled", {}),
    "sampled, λ = 0.95": ("q-sampled", {"decay": 0.95}),
    "dueling, sum, λ = 0.95": ("dueling-q", {"decay": 0.95}),
    "dueling, centred, λ = 0.95": ("dueling-q", {"decay": 0.95, "centred": True}),
    "value-advantage, λ = 0.95": ("value-advantage", {"decay": 0.95}),
    "value, λ = 0.95": ("td-lambda", {"decay": 0.95}),
}
PAIRS = (  # (better, worse) as VAS has it
    (("sampled, λ = 0.95", 10), ("exact, λ = 0.95", 10)),
    (("sampled, λ = 0.95", 10), ("sampled, λ = 0", 10)),
    (("exact, λ = 0.95", 10), ("exact, λ = 0", 10)),
    (("sampled, λ = 0.95", 10), ("sampled, λ = 0.95", "all")),
    (("dueling, sum, λ = 0.95", "all"), ("exact, λ = 0.95", "all")),
    (("dueling, sum, λ = 0.95", "all"), ("dueling, centred, λ = 0.95", "all")),
    (("dueling, sum, λ = 0.95", 10), ("dueling, centred, λ = 0.95", 10)),
    (("value-advantage, λ = 0.95", "all"), ("dueling, sum, λ = 0.95", "all")),
    (("value, λ = 0.95", 10), ("value-advantage, λ = 0.95", 10)),
)


def prepare(model: Any, tokenizer: Any) -> None:
    """Rollouts of the base, for training and for validation, on different prompts."""
    WORK.mkdir(parents=True, exist_ok=True)
    if (WORK / "held-out.jsonl").exists():
        return
    prompts = rollouts.training_prompts(tokenizer, TRAIN_PROMPTS + HELD_OUT, SEED)
    for name, some in (
        ("rollouts", prompts[:TRAIN_PROMPTS]),
        ("held-out", prompts[TRAIN_PROMPTS:]),
    ):
        made = rollouts.sample(model, tokenizer, some * COMPLETIONS, SEED)
        data.write(WORK / f"{name}.jsonl", rollouts.label(made, demo.rewards[REWARD]))


def train(arm: str) -> Path:
    """The checkpoint of an arm."""
    objective, options = ARMS[arm]
    rate = 1e-3 if objective == "td-lambda" else 3e-4  # as in objectives.py
    out = WORK / arm.replace(", ", "-").replace(" = ", "")
    config = TrainConfig(
        objective=objective,
        options=options,
        base="demo",
        layers=2,
        data=str(WORK / "rollouts.jsonl"),
        validation=str(WORK / "held-out.jsonl"),
        out=out,
        epochs=2,
        learning_rate=rate,
        seed=SEED,
        trainer={"disable_tqdm": True},
    )
    return out if (out / "config.json").exists() else run(config)


@torch.inference_mode()
def steer(model: Any, tokenizer: Any, guidance: Guidance | None) -> dict[str, list[float]]:
    """One answer to each prompt: the reward, and the KL to the base over the whole vocabulary."""
    prompts = [demo.chat(prompt) for prompt in world.prompts("test", PROMPTS, SEED)]
    batch = tokenizer(
        prompts, add_special_tokens=False, return_tensors="pt", padding=True, padding_side="left"
    )
    ids, mask, cache = batch.input_ids, batch.attention_mask, DynamicCache()
    draw = torch.Generator().manual_seed(SEED)
    answers: list[list[int]] = [[] for _ in prompts]
    kl = torch.zeros(PROMPTS)
    texts = [row[on.bool()].tolist() for row, on in zip(ids, mask, strict=True)]
    rows = [Row(guidance.params, len(text)) for text in texts] if guidance else []
    open_rows = list(range(PROMPTS))
    for _ in range(MAX_TOKENS):
        output = model(ids, attention_mask=mask, past_key_values=cache, use_cache=True)
        logits = output.logits[:, -1].float()
        guided = logits.clone()
        if guidance is not None:
            for r in open_rows:
                rows[r].prefix = np.array(texts[r] + answers[r])
            guidance.guide.step(guided, [(r, rows[r]) for r in open_rows])
        log_p, log_q = guided.log_softmax(-1), logits.log_softmax(-1)
        p = log_p.exp()
        step = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)
        tokens = p.multinomial(1, generator=draw)
        for r in list(open_rows):
            kl[r] += step[r]
            answers[r].append(int(tokens[r]))
            if answers[r][-1] == tokenizer.eos_token_id:
                open_rows.remove(r)
        if not open_rows:
            break
        ids, mask = tokens, torch.cat((mask, torch.ones(PROMPTS, 1, dtype=mask.dtype)), 1)
    faults = [row.fault for row in rows if row.fault is not None]
    assert not faults, faults[0]
    said = tokenizer.batch_decode(answers, skip_special_tokens=True)
    rewards = [demo.rewards[REWARD](*one) for one in zip(prompts, said, strict=True)]
    return {"rewards": rewards, "kl": kl.tolist()}


def measure(model: Any, tokenizer: Any, arm: str) -> dict[str, dict[str, list[float]]]:
    """Every setting of an arm; each has its own file."""
    path, runs = train(arm), {}
    ks = KS if ARMS[arm][0] != "td-lambda" else (10,)  # it forwards each candidate
    for k, beta in tqdm([*itertools.product(ks, BETAS)], desc=arm, unit="setting"):
        name = f"{arm}, k = {k}, β = {beta:g}"
        kept = WORK / f"{name.replace(', ', '-').replace(' = ', '')}.json"
        if not kept.exists():
            fields = {"k": k, "beta": beta, "mass": 1.0, "tail": "mean"}
            guidance = Guidance({"q": str(path)}, tokenizer, max_length=512, **fields)
            kept.write_text(json.dumps(steer(model, tokenizer, guidance)))
        runs[name] = json.loads(kept.read_text())
    return runs


def at_one_kl(runs: dict[str, dict], arm: str, k: int | str) -> np.ndarray:
    """Each prompt's reward at KL, read between the settings on both sides of it."""
    points = [runs["base"], *(runs[f"{arm}, k = {k}, β = {beta:g}"] for beta in BETAS)]
    values = at_kl([(np.array(one["rewards"]), np.array(one["kl"])) for one in points], KL)
    assert values is not None  # the base spends nothing
    return values


def report(runs: dict[str, dict], aucs: dict[str, float]) -> str:
    lines = [
        "# Q heads\n",
        f"`python benchmarks/q_heads.py`, one training seed ({SEED}). {PROMPTS} prompts, one "
        f"answer each at temperature 1; exact {REWARD} in [−1, 1], mean ± s.e.; KL over the whole "
        f"vocabulary in nats per answer. Trained on {TRAIN_PROMPTS * COMPLETIONS} rollouts. "
        f"The base: {mean_se(runs['base']['rewards'])}. The questions are those of VAS, appendix "
        "B.2.\n",
        f"| arm | k | {' | '.join(f'β = {b:g}: reward, KL' for b in BETAS)} | at KL {KL:g} "
        "| prefix-AUC |",
        f"|---|---|{'---|' * (len(BETAS) + 2)}",
    ]
    for arm, k in itertools.product(aucs, KS):
        if f"{arm}, k = {k}, β = {BETAS[0]:g}" not in runs:
            continue
        own = [runs[f"{arm}, k = {k}, β = {beta:g}"] for beta in BETAS]
        cells = [f"{mean_se(one['rewards'])}, {np.mean(one['kl']):.2f}" for one in own]
        lines.append(
            f"| {arm} | {k} | {' | '.join(cells)} | {mean_se(at_one_kl(runs, arm, k))} "
            f"| {aucs[arm]:.3f} |"
        )
    lines += [
        f"\nPaired by prompt at KL {KL:g}; p is Student's, one-sided:\n",
        "| better, as VAS has it | than | difference | p |",
        "|---|---|---|---|",
    ]
    for (better, k), (worse, other) in PAIRS:
        if better in aucs and worse in aucs:
            sides = at_one_kl(runs, better, k), at_one_kl(runs, worse, other)
            p, gain = paired(*sides, read=True).p, sides[0] - sides[1]
            lines.append(
                f"| {better}, k = {k} | {worse}, k = {other} | {mean_se(gain)} | {p:.2g} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--only", nargs="*", choices=ARMS, help="arms; default: all")
    arms = parser.parse_args().only or list(ARMS)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(demo.base())
    model = networks.build("language", demo.base(), dtype=torch.float32)
    prepare(model, tokenizer)
    runs = {"base": steer(model, tokenizer, None)}
    for arm in arms:
        runs |= measure(model, tokenizer, arm)
    if set(arms) < set(ARMS):
        return
    aucs = {arm: checkpoint.read_info(train(arm)).prefix_auc or 0.0 for arm in arms}
    (RESULTS / "q_heads.json").write_text(json.dumps({"runs": runs, "prefix_auc": aucs}) + "\n")
    text = report(runs, aucs)
    (RESULTS / "q_heads.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
