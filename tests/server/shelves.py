"""A scorer_dir: sound checkpoints, broken ones, and what should never be read."""

import json
import os
import pickle
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from trimtab_models import demo
from trimtab_models.manifest import write_manifest


def remade(source, target, change):
    """A copy of a checkpoint whose weights went through `change`; its manifest is right."""
    shutil.copytree(source, target)
    file = target / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    write_manifest(target)
    return target


def damaged(source, target, change):
    """A copy of a checkpoint whose file of weights went through `change`; its manifest is old."""
    shutil.copytree(source, target)
    file = target / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    return target


class Planted:
    """What a pickle may do when it is read."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


def flip(data):
    middle = len(data) * 3 // 4
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


def unsafe(root, good):
    """Directories that must be looked at before anything of them is opened."""
    shutil.copytree(demo.base(), root / "language")
    write_manifest(root / "language")
    for name in ("config.json", "tokenizer.json", "model.safetensors", "notes"):
        shutil.copytree(good, root / f"fifo-{name.partition('.')[0]}")
        fifo = root / f"fifo-{name.partition('.')[0]}" / name
        fifo.unlink(missing_ok=True)
        os.mkfifo(fifo)
    for name in ("config.json", "MANIFEST.json", "tokenizer.json"):
        huge = shutil.copytree(good, root / f"huge-{name.partition('.')[0].lower()}")
        with (huge / name).open("ab") as file:
            file.truncate(300 * 2**20)
    shutil.copytree(good, root / "crowded")
    for i in range(2000):
        (root / "crowded" / f"{i}.txt").touch()
    shutil.copytree(good, root / "looped")
    (root / "looped" / "again").symlink_to(root / "looped")
    code = shutil.copytree(good, root / "code")
    (code / "mine.py").write_text(f"open({str(root / 'canary')!r}, 'w')")
    content = json.loads((code / "tokenizer_config.json").read_text())
    content |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "mine.Mine"]}}
    (code / "tokenizer_config.json").write_text(json.dumps(content))
    write_manifest(code)


def build(root):
    """Fill an empty directory."""
    sources = {name: Path(path) for name, path in demo.scorers().items()}
    for name, path in sources.items():
        shutil.copytree(path, root / name)
    good = sources["sentiment"]

    def negate(tensors):
        tensors["score.weight"] = -tensors["score.weight"]

    def cut(tensors):
        tensors["score.weight"] = tensors["score.weight"][:, :-1].contiguous()

    def forget(tensors):
        del tensors["score.weight"]

    def spoil(tensors):
        tensors["score.weight"] = torch.full_like(tensors["score.weight"], torch.nan)

    def shrink(tensors):
        (name,) = [name for name in tensors if "embed_tokens" in name]
        tensors[name] = tensors[name][:512].contiguous()

    remade(good, root / "negated", negate)
    remade(good, root / "wrong-shape", cut)
    remade(good, root / "headless", forget)
    remade(good, root / "nan", spoil)
    vocabulary = remade(good, root / "wrong-vocabulary", shrink)
    config = json.loads((vocabulary / "config.json").read_text())
    (vocabulary / "config.json").write_text(json.dumps({**config, "vocab_size": 512}))
    write_manifest(vocabulary)
    damaged(good, root / "truncated", lambda data: data[: len(data) // 2])
    damaged(good, root / "flipped", flip)
    header = damaged(good, root / "huge", lambda data: data)
    spec = {"w": {"dtype": "F32", "shape": [2**36], "data_offsets": [0, 2**38]}}
    text = json.dumps(spec).encode()
    with (header / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 2**38)
    evil = damaged(good, root / "pickled", lambda _: pickle.dumps(Planted(root / "canary")))
    write_manifest(evil)
    shutil.copytree(good, root / "unsigned")
    (root / "unsigned" / "MANIFEST.json").unlink()
    shutil.copytree(good, root / "unnamed")
    (root / "unnamed" / "MANIFEST.json").write_text("{}")
    shutil.copytree(good, root / "no-weights")
    (root / "no-weights" / "model.safetensors").rename(root / "no-weights" / "pytorch_model.bin")
    write_manifest(root / "no-weights")
    (root / "link").symlink_to(good)
    shutil.copytree(good, root / "linked")
    (root / "linked" / "model.safetensors").unlink()
    (root / "linked" / "model.safetensors").symlink_to(good / "model.safetensors")
    shutil.copytree(good, root / "adapter")
    (root / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "gpt2"}')
    unsafe(root, good)
