"""Labelled rollouts of the frozen base, into a journal.

The work is groups: a prefix and the samples still to draw from it. Sample j of group i is drawn
with the seed `sample_seed(seed, i, j)`, so a run that is taken up again draws what it would have
drawn. While the engine draws, the last batch is being labelled.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from trimtab.sampling import Completion, Drawing, Request, sample_seed
from trimtab_lab.rollouts.journal import Journal
from trimtab_lab.rollouts.prompts import RolloutPrompt, check_lengths
from trimtab_models import rewards

if TYPE_CHECKING:  # it imports vLLM, which takes seconds
    from trimtab.adapters.vllm.offline import Sampler

Record = dict[str, Any]
Drawn = list[tuple["PromptGroup", list[Completion]]]
BATCH = 64
"""Answers that are labelled and written at a time, about."""


@dataclass(frozen=True)
class PromptGroup:
    """Samples to draw from one prefix, of which `done` tokens are the answer's own already."""

    index: int
    token_ids: list[int]
    samples: Sequence[int]
    done: int = 0


def roll_out(
    sampler: "Sampler",
    prompts: Sequence[RolloutPrompt],
    drawing: Drawing,
    reward: rewards.Reward | None,
    journal: Journal,
) -> None:
    """n completions of each prompt, labelled; one record each.

    Raises:
        TrimtabError: a prompt is too long. Nothing was drawn.
        RewardError, ScorerFault, InvalidGuidance: as they come; what is written stays.
    """
    sizes = [(prompt.place, len(prompt.token_ids)) for prompt in prompts]
    check_lengths(sizes, drawing.max_tokens, sampler.max_length)
    there = {(record["index"], record["sample"]) for record in journal.records}
    groups = [
        PromptGroup(i, prompt.token_ids, [j])
        for i, prompt in enumerate(prompts)
        for j in range(drawing.n)
        if (i, j) not in there
    ]

    strength = None if drawing.params is None else sampler.strength(drawing.params)
    if strength is not None and drawing.params is not None:
        drawing = replace(drawing, params=drawing.params.model_copy(update={"trace": True}))

    def guided(one: Completion) -> Record:
        if drawing.params is None:
            return {}
        kl = {"kl": round(one.kl, 6)}
        if strength is None:
            return kl
        # What training on guided answers needs, see trimtab_models.objectives.distribution.
        ratios = [round(ratio, 6) for ratio in one.log_ratios]
        return {**kl, "strength": strength, "log_ratios": ratios}

    def record(group: PromptGroup, one: Completion) -> Record:
        prompt = prompts[group.index]
        # A "label" is the prompt's own, for the reward to read; alone it would be the answer's.
        unread = () if reward else ("label",)
        return {
            **{name: value for name, value in prompt.fields.items() if name not in unread},
            "index": group.index,
            "sample": group.samples[0],
            "prompt": prompt.content,
            "completion": answer_of(sampler, prompt.content, one.token_ids),
            "prompt_token_ids": prompt.token_ids,
            "completion_token_ids": one.token_ids,
            "logprobs": [round(value, 6) for value in one.logprobs],
            **guided(one),
        }

    def finish(drawn: Drawn) -> list[Record]:
        records = [record(group, one) for group, [one] in drawn]
        if reward is None:
            return records
        labels = rewards.label(reward, records)
        return [{**r, "reward": value} for r, value in zip(records, labels, strict=True)]

    run(sampler, groups, drawing, finish, journal, already=len(there))


def answer_of(sampler: "Sampler", prompt: Any, ids: Sequence[int]) -> Any:
    """A completion of the prompt's own kind, without special tokens: text, or a message.

    It is text too where the prompt ends with an assistant's turn, which it goes on with.
    """
    text = sampler.tokenizer.decode(ids, skip_special_tokens=True)
    if isinstance(prompt, str) or prompt[-1]["role"] == "assistant":
        return text
    return [{"role": "assistant", "content": text}]


def run(
    sampler: "Sampler",
    groups: Sequence[PromptGroup],
    drawing: Drawing,
    finish: Callable[[Drawn], list[Record]],
    journal: Journal,
    already: int,
) -> None:
    """Draw the groups; `finish` labels them by batches and makes the records to write."""
    left = sum(len(group.samples) for group in groups)
    size = max(1, BATCH // max((len(group.samples) for group in groups), default=1))

    def write(batch: Drawn) -> None:
        journal.append(finish(batch))

    with (
        ThreadPoolExecutor(1) as labeller,
        tqdm(total=already + left, initial=already, desc="rollouts", unit="answer") as bar,
    ):
        drawn = _drawn(sampler, groups, drawing, bar.update)
        labelled = None
        while batch := list(islice(drawn, size)):
            if labelled is not None:
                labelled.result()
            labelled = labeller.submit(write, batch)
        if labelled is not None:
            labelled.result()


def _drawn(
    sampler: "Sampler", groups: Sequence[PromptGroup], drawing: Drawing, tick: Callable[[], Any]
) -> Iterator[tuple[PromptGroup, list[Completion]]]:
    """Groups with their completions, each as soon as it has them all."""
    have: dict[int, dict[int, Completion]] = {}  # by place in `groups`, by sample

    def requests() -> Iterator[Request]:
        for place, group in enumerate(groups):
            for sample in group.samples:
                seed = sample_seed(drawing.seed, group.index, sample)
                most = drawing.max_tokens - group.done
                yield Request((place, sample), group.token_ids, seed, most)

    for (place, sample), completion in sampler.stream(
        requests(),
        temperature=drawing.temperature,
        top_p=drawing.top_p,
        params=drawing.params,
    ):
        have.setdefault(place, {})[sample] = completion
        tick()
        group = groups[place]
        if len(have[place]) == len(group.samples):
            ready = have.pop(place)
            yield group, [ready[j] for j in group.samples]
