"""The smallest arena of the real base, in a process of its own; prints its figures as JSON.

python arena_real.py DIRECTORY
"""

import json
import sys
from pathlib import Path

from trimtab.logs import configure_logging

configure_logging()

from trimtab_lab.arena import arena, task  # noqa: E402
from trimtab_lab.arena.scale import Scale  # noqa: E402
from trimtab_models import pretrained  # noqa: E402
from trimtab_models.smollm2 import fetch, prompts  # noqa: E402


def main():
    out = Path(sys.argv[1]) / "out"
    scale = Scale(0, 0, 0, 8, 4, 1, ("base", "reward-mean"), (8.0,))
    arena.compare(task.load("everyday"), out, scale)
    results = json.loads((out / "results.json").read_text())
    runs = {run["method"]: run for run in results["runs"]}

    def mean(values):
        return sum(values) / len(values)

    chat = [{"role": "user", "content": prompts.TEST[0]}]
    rendered = pretrained.tokenizer(str(fetch.fetch())).apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )
    result = {
        "renders": rendered == prompts.chat(prompts.TEST[0]),
        "base": mean(runs["base"]["rewards"]["kindness"]),
        "guided": mean(runs["reward-mean"]["rewards"]["kindness"]),
        "kl": mean(runs["reward-mean"]["kl"]),
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
