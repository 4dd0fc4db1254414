"""The bench: an engine with a task's base and scorers, which runs settings of methods."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from trimtab.params import MAX_BETA, GuidanceParams
from trimtab.sampling import Completion
from trimtab.search import SearchParams
from trimtab_lab.arena import rivals, stacked
from trimtab_lab.arena.frontier import Floats
from trimtab_lab.arena.measures import diversity, flops, words
from trimtab_lab.arena.method import Method
from trimtab_lab.arena.methods import METHODS, NOTHING, TUNED
from trimtab_lab.arena.runs import Run, fingerprint
from trimtab_lab.arena.scale import Scale
from trimtab_lab.arena.task import Task
from trimtab_models import pretrained
from trimtab_models.checkpoint import read_info

Spec: TypeAlias = str | Mapping[str, Any]
Answers: TypeAlias = tuple[list[list[Completion]], dict[str, Any]]
"""[prompts][answers], and facts about them."""
CHUNK = 8  # prompts sampled together for the frontier


def nothing(ids: Sequence[int]) -> float:
    """A scorer that gives every sequence the score 0."""
    return 0.0


class Bench:
    """An engine and the test prompts.

    Args:
        task: the task of the arena.
        base: directory or hub name of the base model.
        scorers: name → path, or the fields of a trimtab.config.ScorerSpec.
        scale: numbers of prompts, answers and settings.
        out: the arena's directory, which holds tuned rivals.
    """

    def __init__(
        self, task: Task, base: str, scorers: Mapping[str, Spec], scale: Scale, out: Path
    ) -> None:
        self.task, self.base, self.scorers, self.scale = task, base, dict(scorers), scale
        self.out = out
        self._policies: dict[tuple[str, float], Path] = {}
        self.deviations = {name: self._deviation(spec) for name, spec in scorers.items()}
        prints = {name: fingerprint(_path(spec)) for name, spec in scorers.items()}
        self.prints = {"base": fingerprint(base), **prints}
        self.texts = task.world.prompts("test", scale.prompts, scale.seed)
        self.tokenizer = pretrained.tokenizer(base)
        self.prompts = [
            self.tokenizer(text, add_special_tokens=False).input_ids for text in self.texts
        ]

    @cached_property
    def sampler(self) -> Any:
        """The engine; it starts on first use."""
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        disable_progress_bar()  # the arena shows its own bars
        from trimtab.adapters.vllm.offline import Sampler

        zero = {"path": f"{__name__}:nothing", "family": "function"}
        return Sampler(self.base, {**self.scorers, NOTHING: zero}, **self.task.engine)

    @cached_property
    def parameters(self) -> int:
        """Number of parameters of the base."""
        with torch.device("meta"):  # vLLM repacks weights, so its model does not give the number
            config = pretrained.configuration(self.base)
            return int(
                AutoModelForCausalLM.from_config(config, trust_remote_code=False).num_parameters()
            )

    def beta(self, method: Method, scaled_beta: float) -> float:
        """β of a method: scaled β divided by the deviation of its scorer's scores.

        What is above the maximum β of a request is in the scorer's weight.
        """
        return scaled_beta / self.deviations[method.scorer] if method.scorer else 1.0

    def guidance(self, method: Method, scaled_beta: float) -> GuidanceParams | None:
        """The guidance of a request at a scaled β; None for the base model and rivals."""
        if method.group in ("base", "warp") or method.rival:
            return None
        whole = self.beta(method, scaled_beta)
        weight = max(1.0, abs(whole) / MAX_BETA)
        return GuidanceParams(
            scorers={method.scorer or NOTHING: weight},
            beta=math.copysign(min(abs(whole), MAX_BETA), whole),
            k=method.k,
            mass=method.mass,
            tail=method.tail,
        )

    def settings(self, method: Method, scaled_beta: float) -> dict[str, Any]:
        """All settings that determine a run's result."""
        guidance = self.guidance(method, scaled_beta)
        return {
            "world": self.task.world.name,
            "prompts": len(self.prompts),
            "answers": self.answers(method),
            "seed": self.scale.seed,
            "max_tokens": self.task.world.max_tokens,
            "temperature": method.heat(scaled_beta),
            **({"top_p": top_p} if (top_p := method.nucleus(scaled_beta)) < 1 else {}),
            "guidance": guidance and guidance.model_dump(exclude_none=True),
            "search": dict(method.search) if method.search else None,
            "rival": method.rival,
            **({"over": method.over} if method.over else {}),
            **({"rival_steps": steps} if (steps := self._steps(method)) else {}),
            "base": self.prints["base"],
            "scorer": self.prints[method.scorer] if method.scorer else None,
        }

    def _steps(self, method: Method) -> int | None:
        return self.scale.rival_steps if method.rival or method.over else None

    def answers(self, method: Method) -> int:
        """Answers per prompt: one if decoding is deterministic or searches."""
        if method.temperature == 0 or method.search:
            return 1
        return self.scale.answers * method.times

    def run(self, method: Method, scaled_beta: float) -> Run:
        """Run one setting on all prompts."""
        sample = self._prepared(method, scaled_beta)
        before, start = self._forwarded(), time.monotonic()
        groups, facts = sample()
        seconds = time.monotonic() - start
        count = sum(map(len, groups))
        spent = (self._forwarded() - before + facts.pop("forwarded", 0.0)) / count
        sampled_tokens = facts.pop("drawn_tokens", None) or np.mean(
            [len(one.token_ids) for group in groups for one in group]
        )
        prompt_tokens = sum(map(len, self.prompts)) / count  # a prompt counts once for its answers
        texts = [[self.text(one.token_ids) for one in group] for group in groups]
        if self.task.world.real:
            facts["learned"] = self._learned(method, groups)
        return Run(
            method=method.name,
            scaled_beta=scaled_beta,
            settings=self.settings(method, scaled_beta),
            rewards=self.label(texts),
            kl=[[self._kl(one, method) for one in group] for group in groups],
            tokens=[[len(one.token_ids) for one in group] for group in groups],
            words=[[words(text) for text in group] for group in texts],
            diversity=float(np.mean([diversity(group) for group in texts])),
            flops=flops(self.parameters, prompt_tokens + float(sampled_tokens), float(spent[1])),
            drawn_tokens=float(sampled_tokens),
            scorer_tokens=float(spent[0]),
            seconds=seconds,
            texts=[group[0] for group in texts],
            facts=facts,
            kl_tail=[[one.kl_tail for one in group] for group in groups],
        )

    def base_samples(self) -> dict[str, Floats]:
        """Answers of the base, for the frontier: every reward and "tokens", [prompts, samples]."""
        columns: dict[str, list[list[float]]] = {}
        for start in tqdm(range(0, len(self.prompts), CHUNK), desc="base", unit="chunk"):
            groups = self.sampler.sample(
                self.prompts[start : start + CHUNK],
                self.scale.base_samples,
                seed=self.scale.seed + 1 + start,
                temperature=1.0,
                max_tokens=self.task.world.max_tokens,
            )
            texts = [[self.text(one.token_ids) for one in group] for group in groups]
            labelled = self.label(texts, start)
            labelled["tokens"] = [[len(one.token_ids) for one in group] for group in groups]
            for name, rows in labelled.items():
                columns.setdefault(name, []).extend(rows)
        return {name: np.array(rows, dtype=float) for name, rows in columns.items()}

    def label(self, texts: Sequence[Sequence[str]], start: int = 0) -> dict[str, list[list[float]]]:
        """Every reward of answers to the prompts from `start` on: [prompts][answers]."""
        return {
            name: [
                [reward(prompt, text) for text in group]
                for prompt, group in zip(self.texts[start:], texts, strict=False)
            ]
            for name, reward in self.task.world.rewards.items()
        }

    def _prepared(
        self, method: Method, scaled_beta: float, n: int | None = None
    ) -> Callable[[], Answers]:
        """A function that samples a setting's answers; a rival's policy is trained before.

        n: answers per prompt; default: those of the scale.
        """
        answers = n or self.answers(method)
        if method.rival:
            path = self.policy(method, scaled_beta)
            return lambda: self._tuned(path, answers)
        if method.search:
            return lambda: self._search(method, scaled_beta)
        if method.over:
            path = self.policy(METHODS[method.over], TUNED[0])
            return lambda: stacked.sample(self, path, method, scaled_beta, answers)
        return lambda: self._sample(method, scaled_beta, answers)

    def policy(self, method: Method, scaled_beta: float) -> Path:
        """The directory of a rival's policy, trained if it is absent."""
        key = method.name, scaled_beta
        if key not in self._policies:
            steps = self.scale.rival_steps
            self._policies[key] = rivals.policy(self.task, self.out, *key, steps)
        return self._policies[key]

    def texts_of(self, method: Method, scaled_beta: float, n: int) -> list[list[str]]:
        """n answers of a setting to each prompt, as texts: [prompts][n]."""
        groups, _ = self._prepared(method, scaled_beta, n)()
        return [[self.text(one.token_ids) for one in group] for group in groups]

    def request(self, method: Method, scaled_beta: float) -> dict[str, Any]:
        """A setting's options of a sampler, besides prompts and the number of answers."""
        return {
            "seed": self.scale.seed,
            "temperature": method.heat(scaled_beta),
            "top_p": method.nucleus(scaled_beta),
            "max_tokens": self.task.world.max_tokens,
            "params": self.guidance(method, scaled_beta),
        }

    def _sample(self, method: Method, scaled_beta: float, n: int) -> Answers:
        request = self.request(method, scaled_beta)
        groups = self.sampler.sample(self.prompts, n, **request)
        if method.warps is None:
            return groups, {}
        if self.task.world.real:  # its vocabulary is too large to pass again with transformers
            nats = [[math.nan] * len(group) for group in groups]
        else:
            warp = request["temperature"], request["top_p"]
            nats = rivals.warped(self.base, self.prompts, groups, *warp)
        pairs = zip(groups, nats, strict=True)
        return [
            [replace(one, kl=kl) for one, kl in zip(group, row, strict=True)]
            for group, row in pairs
        ], {}

    def _search(self, method: Method, scaled_beta: float) -> Answers:
        results = self.sampler.search(
            self.prompts,
            SearchParams.parse(dict(method.search or {})),
            seed=self.scale.seed,
            temperature=method.temperature,
            max_tokens=self.task.world.max_tokens,
            params=self.guidance(method, scaled_beta),
        )
        groups = [
            [Completion(one.token_ids, [], nats, kl_tail=one.kl_tail)]
            for one in results
            for nats in [one.kl + _bound(method, len(one.token_ids))]
        ]
        sampled_tokens = float(np.mean([one.usage.drawn_tokens for one in results]))
        usage = [asdict(one.usage) for one in results]
        mean = {key: float(np.mean([one[key] for one in usage])) for key in usage[0]}
        return groups, {"drawn_tokens": sampled_tokens, "usage": mean}

    def _tuned(self, path: Path, n: int) -> Answers:
        answers = rivals.sample(self.task, path, self.base, self.texts * n, self.scale.seed)
        groups = [answers[i :: len(self.texts)] for i in range(len(self.texts))]
        return groups, {"policy": fingerprint(path)}

    def _learned(self, method: Method, groups: list[list[Completion]]) -> dict[str, float]:
        """Mean score of the whole answers by the method's trained scorer; the base's by all.

        It is the reward that the method raises. If it rises where gold does not, the method
        optimises the errors of its scorer.
        """
        names = [method.scorer] if method.scorer else list(self.scorers)
        if method.scorer is None and method.group != "base":
            names = []  # the engine keeps no states of such answers, which a probe would read
        sequences = [
            [*prompt, *one.token_ids]
            for prompt, group in zip(self.prompts, groups, strict=True)
            for one in group
        ]
        pairs = zip(self.prompts, groups, strict=True)
        lengths = [len(prompt) for prompt, group in pairs for _ in group]
        means = {}
        for name in names:
            if isinstance(self.scorers[name], str):
                params = GuidanceParams(beta=0.0, scorers={name: 1.0})
                scored = self.sampler.score(sequences, params, lengths)
                means[name] = float(np.mean([one.value for one in scored]))
        return means

    def _kl(self, answer: Completion, method: Method) -> float:
        """Nats; at temperature 0 there is one answer, so KL = −log π0(answer). NaN: unknown."""
        if method.top_p < 1 or method.temperature not in (0.0, 1.0):
            return math.nan
        return -sum(answer.logprobs) if method.temperature == 0 else answer.kl

    def text(self, ids: Sequence[int]) -> str:
        """An answer's text."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _deviation(self, spec: Spec) -> float:
        """Deviation of a scorer's scores; parts of a sum are assumed to be independent."""
        fields = {"path": spec} if isinstance(spec, str) else spec
        match fields.get("family"):
            case "function":
                return 1.0
            case "composite":
                parts = [part.split(":") for part in fields["path"].split("+")]
                return math.hypot(
                    *(float(w) * self._deviation(self.scorers[name]) for name, w in parts)
                )
        return read_info(fields["path"]).deviation

    def _forwarded(self) -> Floats:
        return forwarded(self.sampler)


def forwarded(sampler: Any) -> Floats:
    """Tokens and operations of all scorers so far, [2]; a sum counts through its parts."""
    [statuses, *_] = sampler.engine.collective_rpc("trimtab_scorers")
    parts = [one for one in statuses if one["family"] != "composite"]
    counts = [[one["tokens_forwarded"], one["flops"]] for one in parts]
    return np.array(counts, dtype=float).reshape(-1, 2).sum(0)


def _path(spec: Spec) -> str:
    return spec if isinstance(spec, str) else str(spec["path"])


def _bound(method: Method, tokens: int) -> float:
    """Upper bound of the KL(π ‖ π0) that choosing the best of n adds; NaN if there is none."""
    search = method.search or {}
    n = search.get("n")
    if n is None:
        return float("nan")
    block = search.get("block", tokens)
    if not isinstance(block, int):
        return float("nan")  # blocks that end at a text are of any number
    choices = math.ceil(tokens / block) if "block" in search else 1
    return choices * (math.log(n) - (n - 1) / n)
