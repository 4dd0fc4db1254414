import json
import os
import tempfile
from pathlib import Path

from probe import KEY, PROMPT, TOKENS, URL, run

os.environ["OPENAI_API_KEY"] = KEY
os.environ.setdefault("HF_HUB_OFFLINE", "1")
from lm_eval import simple_evaluate


def ask(model, guidance, stream):
    if stream:
        raise NotImplementedError("lm-eval does not stream")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "review.jsonl"
        data.write_text(json.dumps({"question": PROMPT, "answer": "none"}) + "\n")
        task = {
            "task": "review",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "exact_match"}],
            "generation_kwargs": {"max_gen_toks": TOKENS, "temperature": 0, "until": []},
        }
        results = simple_evaluate(
            model="local-chat-completions",
            model_args={"model": model, "base_url": f"{URL}/v1/chat/completions"},
            tasks=[task],
            apply_chat_template=True,
            log_samples=True,
            gen_kwargs={} if guidance is None else {"guidance": guidance},
            bootstrap_iters=0,
        )
    [sample] = results["samples"]["review"]
    return sample["resps"][0][0], None


run(ask)
