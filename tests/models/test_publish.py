"""Publishing: a complete repository, in a directory or on a hub, without a path of this machine."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
import torch
import typer
import yaml
from peft import AutoPeftModelForTokenClassification, LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from typer.testing import CliRunner

from trimtab_models import checkpoint, manifest
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.publish import publish
from trimtab_server.commands.publish import publish as command

CONFIG = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
REPORT = (
    "# Will it steer?\n\n| validation | n |\n|---|---|\n| prefix-AUC | **0.812** |\n\n| other |\n"
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def base(tmp_path):
    """A directory of this machine that no publication may name."""
    AutoModelForCausalLM.from_config(LlamaConfig(**CONFIG)).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def tokenizer():
    words = {f"w{i}": i for i in range(11)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")))


@pytest.fixture
def made(base, tmp_path):
    """A checkpoint on the local base, with a report, and a log that is nobody else's business."""
    model = AutoModelForTokenClassification.from_pretrained(base, num_labels=1)
    info = ScorerInfo(objective="td-lambda", base_model=str(base), prefix_auc=0.812)
    path = checkpoint.save(model, tokenizer(), info, tmp_path / "made", text="Likes brevity.")
    (path / "report.md").write_text(REPORT)
    (path / "report-length.png").write_bytes(b"png")
    (path / "log.jsonl").write_text(f'{{"data": "{tmp_path}"}}')
    return path


def adapter(base, tmp_path):
    model = AutoModelForTokenClassification.from_pretrained(base, num_labels=1)
    adapted = get_peft_model(model, LoraConfig(task_type="TOKEN_CLS", target_modules=["q_proj"]))
    return checkpoint.save(adapted, None, ScorerInfo(base_model=str(base)), tmp_path / "adapter")


def metadata(readme):
    return yaml.safe_load(readme.split("---\n")[1])


def holds_no_path(directory, tmp_path):
    return not any(str(tmp_path).encode() in file.read_bytes() for file in directory.iterdir())


def test_a_directory_is_complete_and_loads(made, tmp_path):
    to = tmp_path / "new" / "public"
    assert publish(made, str(to), base_model="org/base") == str(to)
    assert {file.name for file in to.iterdir()} == {
        *("README.md", "MANIFEST.json", "config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "report.md", "report-length.png"),
    }
    assert holds_no_path(to, tmp_path)
    manifest.verify(to)
    ids = torch.arange(8)[None]
    model, info = checkpoint.load(to)
    assert info.base_model == "org/base"
    assert torch.equal(checkpoint.load(made)[0](ids).logits, model(ids).logits)
    plain = AutoModelForTokenClassification.from_pretrained(to)
    assert torch.equal(plain(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(to)("w3").input_ids == [3]


def test_the_card_says_what_it_is_and_how_it_was_validated(made, tmp_path):
    old = (made / "README.md").read_text().replace("---\n", "---\nlicense: mit\n", 1)
    (made / "README.md").write_text(old)
    publish(made, str(tmp_path / "public"), base_model="org/base")
    readme = (tmp_path / "public" / "README.md").read_text()
    assert metadata(readme) == {
        "library_name": "transformers",
        "license": "mit",
        "base_model": "org/base",
        "pipeline_tag": "token-classification",
        "tags": ["trimtab", "scorer"],
    }
    assert readme.count("Likes brevity.") == 1
    assert readme.count("| prefix-AUC | **0.812** |") == 1
    assert "| other |" not in readme
    assert "[report.md](report.md)" in readme


def test_a_local_base_is_named_without_its_path(made, tmp_path):
    publish(made, str(tmp_path / "public"))
    readme = (tmp_path / "public" / "README.md").read_text()
    assert "base_model" not in metadata(readme)
    assert "| base model | base |" in readme
    assert checkpoint.read_info(tmp_path / "public").base_model == "base"
    assert holds_no_path(tmp_path / "public", tmp_path)


def test_an_adapter_is_published_with_the_hub_name_of_its_base(base, tmp_path):
    path = adapter(base, tmp_path)
    with pytest.raises(ValueError, match="--base-model"):
        publish(path, str(tmp_path / "public"))
    assert not (tmp_path / "public").exists()
    publish(path, str(tmp_path / "public"), base_model="org/base")
    assert holds_no_path(tmp_path / "public", tmp_path)
    config = json.loads((tmp_path / "public" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base"
    readme = (tmp_path / "public" / "README.md").read_text()
    assert metadata(readme)["library_name"] == "peft"
    # Where that name is a directory, it loads, with PEFT too.
    (tmp_path / "public" / "org").mkdir()
    base.rename(tmp_path / "public" / "org" / "base")
    model, info = checkpoint.load(tmp_path / "public")
    assert info.base_model == "org/base"
    config["base_model_name_or_path"] = str(tmp_path / "public" / "org" / "base")
    (tmp_path / "public" / "adapter_config.json").write_text(json.dumps(config))
    plain = AutoPeftModelForTokenClassification.from_pretrained(tmp_path / "public", num_labels=1)
    ids = torch.arange(8)[None]
    torch.testing.assert_close(plain(ids).logits, model(ids).logits, atol=1e-6, rtol=1e-6)


def test_a_local_reference_model_needs_its_hub_name(base, tmp_path):
    info = ScorerInfo(family="log_ratio", reference="../base", base_model="org/big")
    model = AutoModelForCausalLM.from_pretrained(base)
    path = checkpoint.save(model, None, info, tmp_path / "dpo")
    with pytest.raises(ValueError, match="--reference"):
        publish(path, str(tmp_path / "public"))
    publish(path, str(tmp_path / "public"), reference="org/reference")
    assert checkpoint.read_info(tmp_path / "public").reference == "org/reference"
    readme = (tmp_path / "public" / "README.md").read_text()
    assert metadata(readme)["pipeline_tag"] == "text-generation"


def test_what_would_go_wrong_is_refused(made, tmp_path):
    with pytest.raises(OSError, match="no checkpoint directory"):
        publish(tmp_path / "none", "./x")
    with pytest.raises(OSError, match="not empty"):
        publish(made, str(made))
    with pytest.raises(ValueError, match="org/name"):
        publish(made, "name")
    with pytest.raises(ValueError, match="hub name"):
        publish(made, str(tmp_path / "public"), base_model=str(tmp_path))
    text = (made / "README.md").read_text()
    (made / "README.md").write_text(text.replace("brevity", f"{made}/data.jsonl"))
    with pytest.raises(ValueError, match=r"README\.md would publish the path"):
        publish(made, str(tmp_path / "public"))
    with (made / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(manifest.BrokenCheckpoint, match=r"config\.json"):
        publish(made, str(tmp_path / "public"))
    assert not (tmp_path / "public").exists()
    assert not list(tmp_path.glob(".publish-*"))


@pytest.mark.parametrize("damaged", [True, False], ids=["damaged", "whole"])
def test_what_is_in_the_way_is_named_before_anything_is_read(made, tmp_path, damaged):
    if damaged:
        (made / "config.json").write_text("{}")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "notes.txt").write_text("mine")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    for to, message in (
        (tmp_path / "held", r"not empty.*\(notes\.txt\)"),
        (tmp_path / "file", "not a directory"),
        (tmp_path / "file" / "x", "nothing can be written into"),
        ("/proc/public", "nothing can be written into /proc"),
        (made / "public", "is inside the checkpoint itself"),
    ):
        with pytest.raises(OSError, match=message):
            publish(made, str(to))
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_a_directory_may_be_an_empty_one_behind_a_link(made, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    publish(made, str(tmp_path / "link"))
    manifest.verify(tmp_path / "real")
    assert (tmp_path / "link").is_symlink()


class Hub(ThreadingHTTPServer):
    """The few answers of a hub that a publication asks for; it keeps what was committed."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.status, self.requests, self.files, self.repository = 200, [], {}, {}
        self.private, self.existing = False, []


class Answers(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, body, status=200):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        siblings = [{"rfilename": name} for name in self.server.existing]
        self.answer({"id": "org/scorer", "private": self.server.private, "siblings": siblings})

    def do_POST(self):
        hub, data = self.server, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub.requests.append((self.path, self.headers.get("Authorization")))
        where = f"http://127.0.0.1:{hub.server_port}/org/scorer"
        if hub.status != 200:
            self.answer({"error": "no"}, hub.status)
        elif self.path == "/api/repos/create":
            hub.repository = json.loads(data)
            self.answer({"url": where, "name": "org/scorer"})
        elif self.path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for f in json.loads(data)["files"]
            ]
            self.answer({"files": files})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    hub.files[line["value"]["path"]] = content
            commit = {"commitUrl": f"{where}/commit/0", "commitOid": "0" * 40}
            self.answer({**commit, "hookOutput": ""})
        else:
            self.answer({"errors": [], "warnings": []})


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(
        huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}"
    )
    monkeypatch.setenv("HF_TOKEN", "a-token-for-tests")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def trimtab():
    app = typer.Typer()
    app.command()(command)

    def run(*arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return run


def test_the_hub_gets_a_complete_repository(hub, trimtab, made, tmp_path):
    hub.private = True
    done = trimtab(made, "--to", "org/scorer", "--private", "--base-model", "org/base")
    assert done.exit_code == 0, done.output
    assert "org/scorer" in done.output
    assert hub.repository["name"] == "scorer"
    assert hub.repository["organization"] == "org"
    assert hub.repository.get("private") is True or hub.repository.get("visibility") == "private"
    assert {authorization for _, authorization in hub.requests} == {"Bearer a-token-for-tests"}
    folder = tmp_path / "cloned"
    folder.mkdir()
    for name, content in hub.files.items():
        (folder / name).write_bytes(content)
    manifest.verify(folder)
    ids = torch.arange(8)[None]
    assert torch.equal(checkpoint.load(folder)[0](ids).logits, checkpoint.load(made)[0](ids).logits)
    assert "--scorer name=org/scorer" in (folder / "README.md").read_text()
    assert holds_no_path(folder, tmp_path)


@pytest.mark.parametrize(
    ("status", "message"), [(401, "hf auth login"), (403, "HF_TOKEN"), (500, "HTTP 500")]
)
def test_a_hub_that_refuses_is_reported_in_a_line(hub, trimtab, made, status, message, monkeypatch):
    hub.status = status
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    done = trimtab(made, "--to", "org/scorer")
    assert done.exit_code == 1
    assert done.stderr.startswith("trimtab: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not hub.files


def test_nothing_private_goes_into_a_public_repository(hub, trimtab, made):
    done = trimtab(made, "--to", "org/scorer", "--private")
    assert done.exit_code == 1
    assert "public" in done.stderr
    assert not hub.files


def test_a_repository_of_other_files_is_left_alone(hub, trimtab, made):
    hub.existing = [".gitattributes", "README.md", "model.safetensors"]
    done = trimtab(made, "--to", "org/scorer")
    assert done.exit_code == 1
    assert "org/scorer holds 'model.safetensors', which Trimtab did not publish" in done.stderr
    assert not hub.files
    for existing in ([".gitattributes", "README.md"], [*hub.existing, manifest.NAME]):
        hub.existing, hub.files = existing, {}
        assert trimtab(made, "--to", "org/scorer").exit_code == 0
        assert hub.files


def test_a_hub_out_of_reach_is_reported_in_a_line(hub, trimtab, made, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    done = trimtab(made, "--to", "org/scorer")
    assert done.exit_code == 1
    assert "cannot be reached" in done.stderr
    assert done.stderr.count("\n") == 1
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "cannot be reached" in trimtab(made, "--to", "org/scorer").stderr
