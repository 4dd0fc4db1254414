"""Train a scorer from a reward function, without a server: sample the base, train, score.

    python examples/train_a_scorer.py [DIRECTORY]     half a minute on two CPU cores

For a large base, sample with `trimtab rollout` (vLLM) and train with `trimtab train`.
"""

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from trimtab import Guidance
from trimtab_models import demo
from trimtab_models.demo.rollouts import label, sample, training_prompts
from trimtab_models.training.config import TrainConfig
from trimtab_models.training.run import run

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "price")
folder.mkdir(parents=True, exist_ok=True)
model = AutoModelForCausalLM.from_pretrained(demo.base(), dtype="float32")
tokenizer = AutoTokenizer.from_pretrained(demo.base())

# 1. Rollouts of the base, with a reward: does the answer speak of the price?
prompts = training_prompts(tokenizer, 512, seed=0)
records = sample(model, tokenizer, prompts, seed=0, most_tokens=32)
records = label(records, lambda prompt, completion: float("price" in completion))
lines = "".join(json.dumps(record) + "\n" for record in records)
(folder / "rollouts.jsonl").write_text(lines)

# 2. A histogram of the reward after each prefix: the base's two lower layers and a new head.
config = TrainConfig(
    objective="distribution",
    base="demo",
    layers=2,
    data=str(folder / "rollouts.jsonl"),
    out=folder / "scorer",
    epochs=2,
    learning_rate=1e-3,
)
checkpoint = run(config)

# 3. The checkpoint is what --scorer price=PATH serves; here it scores two texts.
scores = Guidance({"price": checkpoint}, tokenizer).score(
    ["The cafe was nice. The price was", "The cafe was nice. The staff was"]
)
first, second = scores["price"]
print(f"expected reward: {first:.2f} after the first text, {second:.2f} after the second")
