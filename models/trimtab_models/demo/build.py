"""Rebuild the demo from scratch: tokenizer, base model, rollouts, three scorers.

    python -m trimtab_models.demo.build [--out DIR]

A stage whose result exists is skipped, so an interrupted build can be resumed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, set_seed

from trimtab_models import checkpoint, data, networks, objectives, outputs, pretrained, training
from trimtab_models.demo import chat, corpus, language_model, oracles, rollouts, world
from trimtab_models.networks import scalar_head
from trimtab_models.report.validate import validate
from trimtab_models.training import saves

SEED = 0
DOCUMENTS = 40_000
PROMPTS = 768  # different prompts, with `COMPLETIONS` rollouts each
COMPLETIONS = 16
HELD_OUT = 96  # prompts for validation, with four answers each
PAIRS = 16_000
SHARPNESS = 2.0  # of the pairs' judge; the sentiment scorer learns SHARPNESS · reward
NAME = "trimtab-demo-base"
WORK = ".work"  # rollouts and unfinished training, beside the results; not in the wheel

OBJECTIVES = {
    "sentiment": "bradley-terry",
    "formality": "td-lambda",
    "brevity": "td-lambda",
}
EPOCHS = {"sentiment": 1, "formality": 2, "brevity": 2}
BASE_LAYERS = 2  # lowest layers of the base in the initial sentiment scorer
CARDS = {
    "sentiment": "Prefers good words about the thing reviewed: trained on preference pairs.",
    "formality": "Predicts how formal the review will be, −1 to 1.",
    "brevity": "Predicts how short the review will be, −1 to 1.",
}


def train_base(out: Path) -> None:
    """The tokenizer and the language model, written to `out`."""
    tokenizer = language_model.train_tokenizer(seed=SEED)
    texts = corpus.documents(tokenizer, DOCUMENTS, SEED + 1)
    items = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    set_seed(SEED)
    config = language_model.config(tokenizer, **language_model.BASE_SIZES)
    model = LlamaForCausalLM(config)

    def collate(chosen: Sequence[list[int]]) -> dict[str, Tensor]:
        rows = [torch.tensor(ids) for ids in chosen]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        mask = padded >= 0
        return {
            "input_ids": padded.where(mask, tokenizer.pad_token_id),
            "attention_mask": mask.long(),
            "labels": padded,
        }

    work = out.parent / WORK / out.name
    training.fit(
        model,
        items,
        collate,
        lambda network, batch: network(**batch).loss,
        work,
        epochs=1,
        batch_size=32,
        learning_rate=3e-3,
        seed=SEED,
    )
    with saves.placing(out) as part:
        model.half().save_pretrained(part)
        tokenizer.save_pretrained(part)
    training.clear(work)


def roll_out(base: Path, out: Path) -> None:
    """Rollouts of the base over the training prompts, as JSON Lines."""
    tokenizer = pretrained.tokenizer(base)
    model = networks.build("language", base, dtype=torch.float32)
    prompts = rollouts.training_prompts(tokenizer, PROMPTS, SEED) * COMPLETIONS
    data.write(out, rollouts.sample(model, tokenizer, prompts, SEED))


def measure(name: str, base: Path, model: Any, info: checkpoint.ScorerInfo) -> float:
    """A scorer's prefix-AUC on new rollouts of prompts that are not in the training data."""
    tokenizer = pretrained.tokenizer(base)
    network = networks.build("language", base, dtype=torch.float32)
    prompts = [chat(prompt) for prompt in world.prompts("test", HELD_OUT, SEED)] * 4
    records = rollouts.sample(network, tokenizer, prompts, SEED)
    items = data.rollouts(rollouts.label(records, oracles.rewards[name]), tokenizer)
    return validate(model, info, items, None, tokenizer.pad_token_id).prefix_auc.mean.mean


def _network(name: str, base: Path, tokenizer: Any) -> Any:
    """The initial network: the base's lowest layers for sentiment, else random weights."""
    if name != "sentiment":
        return scalar_head(language_model.config(tokenizer, **language_model.SCORER_SIZES))
    model = scalar_head(base, dtype=torch.float32)
    model.base_model.layers = model.base_model.layers[:BASE_LAYERS]
    model.config.num_hidden_layers = BASE_LAYERS
    return model


def train_scorer(
    name: str, base: Path, records: Path, out: Path, objective: str | None = None
) -> None:
    """Train one scorer on the rollouts and write it to `out`.

    Args:
        name: the reward that labels the rollouts.
        base: directory of the base model, for its tokenizer.
        records: the JSON Lines file of `roll_out`.
        out: directory of the new checkpoint.
        objective: a name of `objectives.OBJECTIVES`; by default the demo's for this scorer.
    """
    tokenizer = pretrained.tokenizer(base)
    pad_id = tokenizer.pad_token_id
    loss = objectives.OBJECTIVES[objective or OBJECTIVES[name]]()
    labelled = rollouts.label(data.read(records), oracles.rewards[name])
    seen = data.rollouts(labelled, tokenizer)
    items: list[Any] = seen
    if loss.data == "pairs":
        items = data.pairs(data.preferences(labelled, PAIRS, SEED, SHARPNESS), tokenizer)
    set_seed(SEED)
    model = _network(name, base, tokenizer)
    work = out.parent / WORK / out.name
    training.train(loss, model, items, work, pad_id=pad_id, epochs=EPOCHS[name], seed=SEED)
    info = training.describe(loss, model, seen[:2000], pad_id, NAME)
    info = info.model_copy(update={"prefix_auc": measure(name, base, model, info)})
    checkpoint.save(model.half(), tokenizer, info, out, text=CARDS[name])
    training.clear(work)


def build(out: Path) -> None:
    """Run all stages in order, skipping those whose result exists.

    Raises:
        InTheWay: (an OSError) the directory has other content.
    """
    out = outputs.claim(out, {"world": "demo"})
    (out / WORK).mkdir(exist_ok=True)
    base, records = out / "base", out / WORK / "rollouts.jsonl"
    if not base.exists():
        train_base(base)
    if not records.exists():
        roll_out(base, records)
    for name in OBJECTIVES:
        if not (out / name).exists():
            train_scorer(name, base, records, out / name)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m trimtab_models.demo.build", description="Rebuild the demo's weights."
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "weights", help="output directory"
    )
    try:
        build(parser.parse_args().out)
    except (OSError, ValueError) as error:
        sys.exit(f"trimtab: {error}")


if __name__ == "__main__":
    main()
