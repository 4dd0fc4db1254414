"""`vllm bench serve`, in Trimtab's own environment: it streams always."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from probe import KEY, PROMPT, TOKENS, URL, run

from trimtab_models import demo

# `vllm bench serve` itself; the command `vllm` of the CPU build looks for a package named vllm.
BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def ask(model, guidance, stream):
    if not stream:
        raise NotImplementedError("vllm bench serve streams always")
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "prompts.jsonl", Path(folder) / "result.json"
        data.write_text(json.dumps({"prompt": PROMPT}) + "\n")
        options = {
            "backend": "openai-chat",
            "base-url": URL,
            "endpoint": "/v1/chat/completions",
            "model": model,
            "tokenizer": demo.base(),
            "dataset-name": "custom",
            "dataset-path": data,
            "num-prompts": 1,
            "output-len": TOKENS,
            "temperature": 0,
            "extra-body": json.dumps({} if guidance is None else {"guidance": guidance}),
            "result-dir": folder,
            "result-filename": out.name,
        }
        command = [sys.executable, "-c", BENCH]
        command += [f"--{name}={value}" for name, value in options.items()]
        command += ["--skip-chat-template", "--save-result", "--save-detailed"]
        environment = {**os.environ, "OPENAI_API_KEY": KEY}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-500:])
        [text] = json.loads(out.read_text())["generated_texts"]
    return text, None


run(ask)
