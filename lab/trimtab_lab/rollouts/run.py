"""Sample and label rollouts of the frozen base, and write them to a journal.

The work is divided into groups: a prefix and the samples that are still missing. Sample j of group
i has the seed `sample_seed(seed, i, j)`, so a resumed run samples the same answers. The engine
samples the next batch while the last one is labelled.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

from tqdm import tqdm

from trimtab.params import GuidanceParams
from trimtab.sampling import Completion, RolloutSampling, SamplingRequest, sample_seed
from trimtab_lab.rollouts.journal import Journal
from trimtab_lab.rollouts.prompts import RolloutPrompt, check_lengths
from trimtab_models import rewards
from trimtab_models.data import Record
from trimtab_models.data.fields import of_prompt

CompletedGroups = list[tuple["PromptGroup", list[Completion]]]
BATCH = 64
"""Approximate number of answers that are labelled and written together."""


class Sampler(Protocol):
    """Where completions come from: an engine in this process, or in actors (remote.py)."""

    tokenizer: Any
    max_length: int

    def strength(self, params: GuidanceParams | None) -> float | None:
        """The strength of the only scorer that is used, if it has return distributions."""

    def stream(
        self,
        requests: Iterable[SamplingRequest],
        *,
        temperature: float,
        top_p: float = 1.0,
        params: GuidanceParams | None = None,
    ) -> Iterator[tuple[Any, Completion]]:
        """(key, completion) of each request as it ends."""


@dataclass(frozen=True)
class PromptGroup:
    """Samples of one prefix; its last `kept` tokens belong to the answer."""

    index: int
    token_ids: list[int]
    samples: Sequence[int]
    kept: int = 0


def roll_out(
    sampler: Sampler,
    prompts: Sequence[RolloutPrompt],
    sampling: RolloutSampling,
    reward: rewards.Reward | None,
    journal: Journal,
    *,
    prefixes: bool = False,
) -> None:
    """Sample n completions of each prompt; write one labelled record for each.

    prefixes: also label the first 1, 2, … tokens of each, as "prefix_rewards".

    Raises:
        TrimtabError: a prompt is too long. Nothing was sampled.
        RewardError, ScorerFault, InvalidGuidance: the records written so far stay.
    """
    sizes = [(prompt.place, len(prompt.token_ids)) for prompt in prompts]
    check_lengths(sizes, sampling.max_tokens, sampler.max_length)
    written = {(record["index"], record["sample"]) for record in journal.records}
    groups = [
        PromptGroup(i, prompt.token_ids, [j])
        for i, prompt in enumerate(prompts)
        for j in range(sampling.n)
        if (i, j) not in written
    ]

    strength = None if sampling.params is None else sampler.strength(sampling.params)
    if strength is not None and sampling.params is not None:
        sampling = replace(sampling, params=sampling.params.model_copy(update={"trace": True}))

    def guided(completion: Completion) -> Record:
        if sampling.params is None:
            return {}
        kl = {"kl": round(completion.kl, 6)}
        if strength is None:
            return kl
        # Training on guided answers needs these, see trimtab_models.objectives.distribution.
        ratios = [round(ratio, 6) for ratio in completion.log_ratios]
        return {**kl, "strength": strength, "log_ratios": ratios}

    def record(group: PromptGroup, completion: Completion) -> Record:
        prompt = prompts[group.index]
        # A "label" belongs to the prompt, and the reward may read it. Without a reward, training
        # would read it as the label of the answer.
        omitted = () if reward else ("label",)
        return {
            **{name: value for name, value in prompt.fields.items() if name not in omitted},
            "index": group.index,
            "sample": group.samples[0],
            "prompt": prompt.content,
            "completion": answer_of(sampler, prompt.content, completion.token_ids),
            "prompt_token_ids": prompt.token_ids,
            "completion_token_ids": completion.token_ids,
            "logprobs": [round(value, 6) for value in completion.logprobs],
            **guided(completion),
        }

    def finish(batch: CompletedGroups) -> list[Record]:
        records = [record(group, completion) for group, [completion] in batch]
        if reward is None:
            return records
        labels = rewards.label(reward, records)
        labelled = [{**r, "reward": value} for r, value in zip(records, labels, strict=True)]
        if not prefixes:
            return labelled
        return [{**r, "prefix_rewards": prefix_rewards(sampler, reward, r)} for r in labelled]

    run(sampler, groups, sampling, finish, journal, already=len(written))


def prefix_rewards(sampler: Sampler, reward: rewards.Reward, record: Record) -> list[float]:
    """The reward of a record's answer after each of its tokens."""
    ids = record["completion_token_ids"]
    parts = [ids[: t + 1] for t in range(len(ids))]
    unfinished = [
        {
            **of_prompt(record),
            "completion": answer_of(sampler, record["prompt"], part),
            "completion_token_ids": part,
        }
        for part in parts
    ]
    return rewards.label(reward, unfinished)


def answer_of(sampler: Sampler, prompt: Any, ids: Sequence[int]) -> Any:
    """A completion in the form of its prompt, without special tokens: text, or a message.

    It is also text if the prompt ends with an assistant turn, which the completion continues.
    """
    text = sampler.tokenizer.decode(ids, skip_special_tokens=True)
    if isinstance(prompt, str) or prompt[-1]["role"] == "assistant":
        return text
    return [{"role": "assistant", "content": text}]


def run(
    sampler: Sampler,
    groups: Sequence[PromptGroup],
    sampling: RolloutSampling,
    finish: Callable[[CompletedGroups], list[Record]],
    journal: Journal,
    already: int,
) -> None:
    """Sample the groups; `finish` labels a batch and returns the records to write.

    already: answers of earlier runs, for the progress bar.
    """
    missing = sum(len(group.samples) for group in groups)
    size = max(1, BATCH // max((len(group.samples) for group in groups), default=1))

    def write(batch: CompletedGroups) -> None:
        journal.append(finish(batch))

    with (
        ThreadPoolExecutor(1) as labeller,
        tqdm(total=already + missing, initial=already, desc="rollouts", unit="answer") as bar,
    ):
        completed = _completed_groups(sampler, groups, sampling, bar.update)
        labelled = None
        while batch := list(islice(completed, size)):
            if labelled is not None:
                labelled.result()
            labelled = labeller.submit(write, batch)
        if labelled is not None:
            labelled.result()


def _completed_groups(
    sampler: Sampler,
    groups: Sequence[PromptGroup],
    sampling: RolloutSampling,
    tick: Callable[[], Any],
) -> Iterator[tuple[PromptGroup, list[Completion]]]:
    """Each group with its completions, as soon as all of them are sampled."""
    pending: dict[int, dict[int, Completion]] = {}  # by position in `groups`, by sample

    def requests() -> Iterator[SamplingRequest]:
        for position, group in enumerate(groups):
            for sample in group.samples:
                seed = sample_seed(sampling.seed, group.index, sample)
                max_tokens = sampling.max_tokens - group.kept
                yield SamplingRequest((position, sample), group.token_ids, seed, max_tokens)

    for (position, sample), completion in sampler.stream(
        requests(),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        params=sampling.params,
    ):
        pending.setdefault(position, {})[sample] = completion
        tick()
        group = groups[position]
        if len(pending[position]) == len(group.samples):
            completions = pending.pop(position)
            yield group, [completions[j] for j in group.samples]
