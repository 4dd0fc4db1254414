"""Train a tiny scorer, kill −9 it again and again, and compare with the run nobody touched.

    python tests/models/kills.py DIRECTORY SEED

Imports cost seconds and a kill milliseconds, so one process imports everything and forks the ones
that die. Prints one JSON object: what happened, and whether weights, optimiser and log are equal.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tqdm import tqdm
from transformers import LlamaConfig, set_seed
from transformers.utils import logging as transformers_logging

from trimtab_models import manifest, training
from trimtab_models.networks import scalar_head
from trimtab_models.objectives.bradley_terry import BradleyTerry
from trimtab_models.rows import Pair
from trimtab_models.training import saves

RANDOM_KILLS, SAVE_KILLS = 15, 5
STEPS_A_SAVE = 6


def train(run: Path) -> None:
    """Random numbers everywhere: in the order of the data, in dropout, and in the loss."""
    draw = random.Random(1)
    pairs = [
        Pair([1], *([draw.randrange(8) for _ in range(draw.randint(1, 6))] for _ in range(2)))
        for _ in range(84)
    ]
    set_seed(0)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        attention_dropout=0.1,
        pad_token_id=0,
    )
    training.train(
        BradleyTerry(ratio=0.5),
        scalar_head(config),
        pairs[8:],
        run,
        pad_id=0,
        epochs=9,
        batch_size=8,
        seed=2,
        validation=pairs[:8],
        save_steps=STEPS_A_SAVE,
        logging_steps=3,
        warmup_steps=0,
        disable_tqdm=True,
    )


def result(run: Path) -> dict[str, Any]:
    last = saves.newest(run)
    assert last is not None
    return {
        "step": last.name,
        "weights": safetensors.torch.load_file(last / "model.safetensors"),
        "optimiser": torch.load(last / "optimizer.pt"),
        "log": (run / saves.LOG).read_bytes(),
        "kept": sorted(path.name for path in run.iterdir()),
    }


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def at_each_point_of_a_save(do: Callable[[], None]) -> None:
    """Have `do` called between the steps of a save: each file, flush, rename and removal."""

    def before(owner: Any, name: str) -> None:
        old = getattr(owner, name)

        def new(*args: Any, **options: Any) -> Any:
            do()
            return old(*args, **options)

        setattr(owner, name, new)

    for owner, name in (
        (torch, "save"),
        (manifest, "_sync"),
        (manifest, "_digest"),
        (Path, "rename"),
        (shutil, "rmtree"),
    ):
        before(owner, name)


def child(run: Path, hook: Callable[[], None] | None = None) -> int:
    """Fork a process that trains."""
    pid = os.fork()
    if pid:
        return pid
    try:
        if hook:
            save = saves.SafeTrainer._save_checkpoint
            inside = []
            at_each_point_of_a_save(lambda: hook() if inside else None)

            def marked(*args: Any) -> None:
                inside.append(True)
                save(*args)
                inside.clear()

            saves.SafeTrainer._save_checkpoint = marked
        train(run)
    except BaseException as error:
        print(error, file=sys.stderr)
        os._exit(1)
    os._exit(0)


def ended(pid: int) -> bool:
    """Whether a process came to its own end; False if it was killed."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0, "a resumed run failed"
    return True


def main() -> None:
    top, seed = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    draw = random.Random(seed)

    started = time.monotonic()
    assert ended(child(top / "whole"))
    lasted = time.monotonic() - started
    whole = result(top / "whole")

    counted = top / "points"
    with open(counted, "wb", buffering=0) as file:
        assert ended(child(top / "counted", lambda: file.write(b".") and None))
    saves_made = int(whole["step"].rpartition("-")[2]) // STEPS_A_SAVE
    points = counted.stat().st_size // saves_made  # in a save, on average

    plan = ["moment"] * RANDOM_KILLS + ["save"] * SAVE_KILLS
    draw.shuffle(plan)
    killed, runs, backwards = {"moment": 0, "save": 0}, 0, 0
    same = True
    bar = tqdm(total=len(plan), desc="kills", disable=None)
    while plan:
        run, step = top / f"run-{runs}", -1
        runs += 1
        done = False
        while not done:
            kind = plan[-1] if plan else "none"
            if kind == "save":
                left = [draw.randrange(2 * points)]  # in the first save or in the second

                def die(left: list[int] = left) -> None:
                    left[0] -= 1
                    if left[0] < 0:
                        os.kill(os.getpid(), signal.SIGKILL)

                pid = child(run, die)
            else:
                pid = child(run)
                if kind == "moment":
                    time.sleep(draw.uniform(0.0, 0.4) * lasted)
                    os.kill(pid, signal.SIGKILL)
            done = ended(pid)
            if not done:
                killed[plan.pop()] += 1
                bar.update()
                last = saves.newest(run) if run.exists() else None
                reached = int(last.name.rpartition("-")[2]) if last else -1
                backwards += reached < step
                step = reached
        same = same and equal(result(run), whole)
        shutil.rmtree(run)
    print(
        json.dumps(
            {"killed": killed, "runs": runs, "backwards": backwards, "equal": same}
            | {"lines": whole["log"].count(b"\n"), "kept": whole["kept"], "points": points}
        )
    )


if __name__ == "__main__":
    main()
