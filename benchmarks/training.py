"""Training throughput: our tokens per second divided by those of the bare transformers Trainer.

    python benchmarks/training.py [--repeats 5] [--steps 40] [--out benchmarks/results]

Both use the same backbone, data, batch, optimiser and schedule. The bare run is transformers' own
*ForTokenClassification with its cross-entropy, or with a squared error to the reward; ours is the
objective, which computes more. Both save once, at the end. The two alternate in one process, in
alternating order, and the result is the median of the paired ratios.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from trimtab_models import training
from trimtab_models.networks import scalar_head
from trimtab_models.objectives import OBJECTIVES
from trimtab_models.rows import Rollout
from trimtab_models.training.trainer import settings

BATCH, BINS, VOCABULARY = 16, 51, 1024
SETTINGS = {"save_steps": 10**6, "logging_steps": 10, "disable_tqdm": True}


def network(bins: int) -> Any:
    set_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    return scalar_head(config, bins=bins)


def rollouts(n: int) -> list[Rollout]:
    rng = random.Random(0)

    def tokens(low: int, high: int) -> list[int]:
        return [rng.randrange(1, VOCABULARY) for _ in range(rng.randint(low, high))]

    return [Rollout(tokens(8, 24), tokens(24, 96), rng.uniform(-1, 1)) for _ in range(n)]


def ours(name: str, items: list[Rollout], work: Path) -> None:
    options = {"support": (-1.0, 1.0), "bins": BINS} if name == "distribution" else {}
    model = network(options.get("bins", 1))
    arguments: dict[str, Any] = {"epochs": 1, "batch_size": BATCH, **SETTINGS}
    training.train(OBJECTIVES[name](**options), model, items, work, pad_id=0, **arguments)


def bare(name: str, items: list[Rollout], work: Path) -> None:
    bins = BINS if name == "distribution" else 1
    fields = settings(work, validate=False, early_stopping=None, seed=0, **SETTINGS)
    fields |= {"num_train_epochs": 1, "per_device_train_batch_size": BATCH, "learning_rate": 1e-3}

    def label(item: Rollout) -> float:
        return item.label if bins == 1 else round((item.label + 1) / 2 * (BINS - 1))

    def collate(chosen: Sequence[Rollout]) -> dict[str, Tensor]:
        texts = [torch.tensor(item.prompt + item.completion) for item in chosen]
        padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
        labels = torch.full(padded.shape, -100, dtype=torch.float if bins == 1 else torch.long)
        for row, item in zip(labels, chosen, strict=True):
            row[len(item.prompt) : len(item.prompt) + len(item.completion)] = label(item)
        return {"input_ids": padded, "attention_mask": (padded > 0).long(), "labels": labels}

    def squared(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return (outputs["logits"][..., 0] - labels)[labels != -100].square().mean()

    trainer = Trainer(
        model=network(bins),
        args=TrainingArguments(**fields),
        train_dataset=items,
        data_collator=collate,
        compute_loss_func=squared if bins == 1 else None,
    )
    trainer.train()


def seconds(run: Callable[[str, list[Rollout], Path], None], name: str, items: Any) -> float:
    with tempfile.TemporaryDirectory() as work:
        start = time.perf_counter()
        run(name, items, Path(work) / "run")
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    items = rollouts(BATCH * options.steps)
    tokens = sum(len(item.prompt) + len(item.completion) for item in items)
    results = {}
    for name in ("td-lambda", "distribution"):
        seconds(bare, name, items[: 2 * BATCH]), seconds(ours, name, items[: 2 * BATCH])
        pairs = []
        for repeat in tqdm(range(options.repeats), desc=name, unit="pair"):
            order = (ours, bare) if repeat % 2 else (bare, ours)
            times = {run: seconds(run, name, items) for run in order}
            pairs.append((times[ours], times[bare]))
        results[name] = {
            "ratio": statistics.median(theirs / our for our, theirs in pairs),
            "ratios": [theirs / our for our, theirs in pairs],
            "ours": tokens / statistics.median(our for our, _ in pairs),
            "bare": tokens / statistics.median(theirs for _, theirs in pairs),
        }
    threads = torch.get_num_threads()
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {threads} threads"
    )
    setting = {"device": device, "tokens": tokens, "batch": BATCH, "repeats": options.repeats}
    text = json.dumps({"setting": setting, "objectives": results}, indent=1)
    (options.out / "training.json").write_text(text + "\n")
    lines = [
        "# Training throughput",
        "",
        f"`python benchmarks/training.py`; {device}; {tokens} tokens, batch {BATCH}; median of "
        f"{options.repeats} pairs.",
        "",
        "| objective | ours, tokens/s | bare Trainer, tokens/s | ratio |",
        "|---|---|---|---|",
        *(
            f"| {name} | {row['ours']:.0f} | {row['bare']:.0f} | {row['ratio']:.3f} |"
            for name, row in results.items()
        ),
    ]
    (options.out / "training.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines[4:]))


if __name__ == "__main__":
    main()
