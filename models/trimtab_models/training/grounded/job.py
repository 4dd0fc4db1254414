"""From data to a trained language model, saved after every turn, so that a kill loses one turn.

The run directory `NAME.run` beside `out` contains checkpoint-N as in training/saves.py: both
networks and the optimiser after step N. A resumed run reaches the same bits as an uninterrupted one
with the same number of threads.
"""

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trimtab_models import bases, checkpoint, manifest, outputs, pretrained, rewards
from trimtab_models.data import Record
from trimtab_models.data.encoding import Encoder
from trimtab_models.data.faults import Fault, convert
from trimtab_models.data.fields import of_prompt
from trimtab_models.data.sources import rows as rows_of
from trimtab_models.networks import build
from trimtab_models.objectives.plackett_luce import PlackettLuce
from trimtab_models.rows import Rollout
from trimtab_models.training import describe, initial, output_checks, saves
from trimtab_models.training.grounded.guidance import Judge, TokenRewards
from trimtab_models.training.grounded.settings import GroundedConfig
from trimtab_models.training.grounded.turns import Turns

REWARDS = "token-rewards"
"""Directory of the network of token rewards, an ordinary scorer, inside the result."""


def run(config: GroundedConfig) -> Path:
    """Train a language model; returns the directory of the result.

    Raises:
        InTheWay: (an OSError) the place of the result is not free. Nothing was done.
        ValueError: the configuration, the data, the reward or an earlier run's files are invalid;
            the message names the cause.
        OSError: the data or a network cannot be read, or the result cannot be written.
    """
    config = config.model_copy(update={"out": outputs.place(config.out)})
    made_by = config.model_dump(mode="json", exclude={"out", "data"})
    base = bases.base_path(config.base)
    output_checks.check(config.out, made_by, data=config.data, base=base, scorer=config.scorer)
    tokenizer = pretrained.tokenizer(base)
    encoder = Encoder(tokenizer)
    examples, records = _examples(config, encoder)
    try:
        objective = PlackettLuce(**config.options)
    except TypeError as error:
        raise ValueError(f"options of {config.objective}: {error}") from None
    made_by |= {"data": saves.digest(examples)}
    if output_checks.finished(config.out, made_by):
        return config.out
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config.seed)
    scorer = build("scalar", config.scorer or base, dtype=torch.float32)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else encoder.eos
    turns = Turns(
        config,
        build("language", base, dtype=torch.float32).to(device),
        TokenRewards(
            initial.keep_layers(scorer, config.layers).to(device).eval(), objective, pad_id
        ),
        examples,
        _judge(config.reward, tokenizer, records),
        eos=encoder.eos,
        pad_id=pad_id,
    )
    work = saves.run_directory(config.out)
    if (last := saves.newest(work)) is not None:
        saves.refuse_changes(last, made_by)
        turns.restore(torch.load(last / "state.pt", map_location=device, weights_only=True))
    turns.run(lambda turns: _save(turns, work, made_by))
    info = describe(
        objective, turns.token_rewards.model, examples[:1000], pad_id, bases.base_name(config.base)
    )
    _write(turns, tokenizer, info, config.out, made_by)
    saves.clear(work)
    return config.out


def _examples(config: GroundedConfig, encoder: Encoder) -> tuple[list[Rollout], list[Record]]:
    records: list[Record] = []
    supervised, reads = config.objective == "grounded-mle", initial.reads(config)

    def read(record: Record) -> Rollout:
        prompt = encoder.prompt(record)
        completion = encoder.completion(record, "completion") if supervised else [encoder.eos]
        tokens = len(prompt) + max(len(completion), config.max_new_tokens)
        if reads is not None and tokens > reads:
            raise Fault(
                f"prompt and answer need {tokens} tokens (max_new_tokens: "
                f"{config.max_new_tokens}), but the network reads {reads}"
            )
        records.append(record)
        return Rollout(prompt, completion, 0.0)

    examples = convert(rows_of(config.data), read, "reading")
    if not examples:
        raise ValueError(f"{config.data} holds no rows.")
    return examples, records


def _judge(spec: str, tokenizer: Any, records: Sequence[Record]) -> Judge:
    reward = rewards.load(spec)
    groups: dict[tuple[int, ...], list[Record]] = defaultdict(list)
    encoder = Encoder(tokenizer)
    for record in records:
        groups[tuple(encoder.prompt(record))].append(record)
    by_prompt = {prompt: of_prompt(*group) for prompt, group in groups.items()}

    def judge(generations: Sequence[Rollout]) -> list[float]:
        texts = tokenizer.batch_decode(
            [one.completion for one in generations], skip_special_tokens=True
        )
        prompts = [by_prompt[tuple(one.prompt)] for one in generations]
        return rewards.label(
            reward,
            [{**record, "completion": text} for record, text in zip(prompts, texts, strict=True)],
        )

    return judge


def _save(turns: Turns, work: Path, fingerprint: Mapping[str, Any]) -> None:
    target = work / f"checkpoint-{turns.step}"
    with saves.placing(target, f"the checkpoint of step {turns.step} in {work}") as part:
        torch.save(turns.state(), part / "state.pt")
        (part / saves.FINGERPRINT).write_text(json.dumps(fingerprint), encoding="utf-8")
        lines = "".join(json.dumps(entry) + "\n" for entry in turns.log)
        outputs.put(work / saves.LOG, lines)
    for old in saves.checkpoints(work)[: -saves.KEPT]:
        shutil.rmtree(old)


def _write(
    turns: Turns,
    tokenizer: Any,
    info: checkpoint.ScorerInfo,
    out: Path,
    made_by: Mapping[str, Any],
) -> None:
    manifest.replaceable(out)
    text = "Token rewards that a language model was trained with."
    with saves.placing(out) as part:
        turns.model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        outputs.mark(part, made_by)
        checkpoint.save(turns.token_rewards.model, tokenizer, info, part / REWARDS, text=text)
