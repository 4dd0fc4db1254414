"""States of the frozen base that probes read, computed once and kept on disk.

For an answer of T tokens they are the base's last hidden states, which its output embedding reads,
at the T positions before each token: from the prompt's last token to the answer's last but one.

    CACHE/states/FINGERPRINT/DTYPE/DIGEST/shard-00000.safetensors

FINGERPRINT is the base's (base_weights.fingerprint), DTYPE that in which the base computed them,
and DIGEST the SHA-256 of the answers' tokens.
A shard holds float16 states of `SHARD` answers and their SHA-256. It appears by a rename once it is
complete, so an interrupted run continues with the next one; a damaged shard is computed again.
Shards are mapped into memory, not read into it. The directory can be removed at any time.
"""

import fcntl
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from trimtab_models import base_weights, cache, networks, outputs, pretrained, probe
from trimtab_models.files import Unusable
from trimtab_models.rows import Rollout, pad

SHARD = 256
"""Answers in a file."""
BATCH = 4096
"""Maximum tokens, padding included, in a forward of the base."""

Key = tuple[tuple[int, ...], tuple[int, ...]]


class States:
    """The states of one base for the answers that were added.

    Attributes:
        base: the base's directory or hub name.
        fingerprint: its identity, see `base_weights.fingerprint`.
    """

    def __init__(self, base: str | Path, *, progress: bool = False) -> None:
        """progress: show a progress bar where states are computed.

        Raises:
            FileNotFoundError, Unusable: the base cannot be read, or has no plain embedding.
        """
        self.base = base
        self.fingerprint = base_weights.fingerprint(base)
        self._dtype = _dtype(base)
        self._embedding = probe.embedding(base)
        self._known: dict[Key, Tensor] = {}
        self._progress = progress

    @property
    def vocabulary(self) -> int:
        """Number of tokens of the base."""
        return len(self._embedding)

    def embedding(self, device: torch.device | str = "cpu") -> Tensor:
        """The base's scaled output embedding, [vocab, hidden] float32; see `probe.embedding`."""
        self._embedding = self._embedding.to(device)
        return self._embedding

    def of(self, rollout: Rollout) -> Tensor:
        """The states before each token of an answer that was added: [T, hidden] float16."""
        return self._known[_key(rollout)]

    def batch(self, rollouts: Sequence[Rollout]) -> Tensor:
        """Those of several, 0 after their ends: [rows, longest T, hidden] float16."""
        return pad_sequence([self.of(rollout) for rollout in rollouts], batch_first=True)

    def add(self, rollouts: Sequence[Rollout]) -> None:
        """Make the states of these answers known, from the disk or else by the base.

        Raises:
            ValueError: an empty prompt or completion, or states that float16 cannot hold.
            OSError: the base cannot be read, or the cache directory cannot be written.
        """
        new = {_key(rollout) for rollout in rollouts} - self._known.keys()
        if not new:
            return
        longest_first = sorted(new, key=lambda key: (-len(key[0]) - len(key[1]), key))
        shards = [longest_first[i : i + SHARD] for i in range(0, len(new), SHARD)]
        dtype = str(self._dtype).removeprefix("torch.")
        root = cache.directory() / "states" / self.fingerprint / dtype
        folder = root / _digest(longest_first)
        with _alone_in(folder):
            files = [folder / f"shard-{i:05}.safetensors" for i in range(len(shards))]
            absent = [
                (file, shard)
                for file, shard in zip(files, shards, strict=True)
                if not self._read(file, shard)
            ]
            if absent:
                self._compute(absent)

    def _read(self, file: Path, shard: Sequence[Key]) -> bool:
        """Map a shard's states; False if it is absent or damaged."""
        try:
            with safe_open(file, "pt") as opened:
                whole, known = opened.get_tensor("states"), opened.metadata() or {}
        except (OSError, SafetensorError):
            return False
        lengths = [len(completion) for _, completion in shard]
        if known.get("sha256") != _sha256(whole) or len(whole) != sum(lengths):
            return False
        self._known.update(zip(shard, whole.split(lengths), strict=True))
        return True

    def _compute(self, absent: Sequence[tuple[Path, Sequence[Key]]]) -> None:
        """Compute shards and write them."""
        backbone = _backbone(self.base, self._dtype)
        total = sum(len(shard) for _, shard in absent)
        with tqdm(total=total, desc="states", unit="answer", disable=not self._progress) as bar:
            for file, shard in absent:
                states: list[Tensor] = []
                for batch in _batches(shard):
                    states += _forward(backbone, batch, str(self.base))
                    bar.update(len(batch))
                whole = torch.cat(states)
                with outputs.writing(file) as part:
                    save_file({"states": whole}, part, {"sha256": _sha256(whole)})
                if not self._read(file, shard):  # from here on mapped, not in memory
                    raise OSError(f"{file} cannot be read after it was written.")


def _key(rollout: Rollout) -> Key:
    return tuple(rollout.prompt), tuple(rollout.completion)


def _digest(keys: Sequence[Key]) -> str:
    sha = hashlib.sha256()
    for key in keys:
        sha.update(repr(key).encode())
    return sha.hexdigest()[:32]


def _sha256(states: Tensor) -> str:
    return hashlib.sha256(states.contiguous().view(torch.uint8).numpy().data).hexdigest()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a directory, so that two runs do not compute the same states."""
    outputs.check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _dtype(base: str | Path) -> torch.dtype:
    """The base's own dtype, in which it is served; float32 on a processor that is slow in it."""
    own = getattr(pretrained.configuration(base), "dtype", None)
    if not isinstance(own, torch.dtype):
        return torch.float32
    fast = own == torch.bfloat16 and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return own if torch.cuda.is_available() or fast else torch.float32


def _backbone(base: str | Path, dtype: torch.dtype) -> Any:
    """The base without its output embedding, on the GPU if there is one."""
    model = networks.vocabulary_head(base, dtype=dtype)
    return networks.split(model)[0].to("cuda" if torch.cuda.is_available() else "cpu")


def _batches(shard: Sequence[Key]) -> Iterator[list[Rollout]]:
    """The answers of a shard, longest first, in batches of `BATCH` tokens at most."""
    batch: list[Rollout] = []
    width = 0
    for prompt, completion in shard:
        width = width or len(prompt) + len(completion)
        if batch and (len(batch) + 1) * width > BATCH:
            yield batch
            batch, width = [], len(prompt) + len(completion)
        batch.append(Rollout(list(prompt), list(completion), 0.0))
    yield batch


@torch.inference_mode()
def _forward(backbone: Any, batch: Sequence[Rollout], name: str) -> list[Tensor]:
    """The states before each token of each answer. Padding is on the right, so none sees it."""
    rows = pad(batch, 0)
    inputs = {"input_ids": rows.input_ids, "attention_mask": rows.attention_mask}
    with networks.attention_of_any_shape():
        hidden = backbone(
            **{key: value.to(backbone.device) for key, value in inputs.items()}
        ).last_hidden_state
    before = rows.before(hidden.cpu()).half()  # [rows, steps, hidden]
    if not before.isfinite().all():
        raise Unusable(f"{name}: its states are too large for float16, so no probe can read them.")
    return [
        states[:length].clone()
        for states, length in zip(before, rows.completions.tolist(), strict=True)
    ]
