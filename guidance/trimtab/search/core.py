"""The protocol between a search and its driver; a search does no input or output.

A search is a generator. It yields rounds and receives their results:

    [Draw | Score, …]   →   [Drawn | ScoredSequence, …] in the same order, all of them at once
    Commit              →   None: these tokens are final, and may be sent to the client

and it returns a Result. A driver runs the requests of a round as one batch, for many searches
together if there are several (sync.py; the server has its own).
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Literal

from trimtab.params import GuidanceParams
from trimtab.sampling import sample_seed
from trimtab.scoring.text import PromptContext, Turns
from trimtab.search.params import TextBlock

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class Draw:
    """Continue a sequence with the base. Draws of a round differ in prefix, length and seed."""

    prefix: TokenIds  # prompt included
    max_tokens: int
    seed: int
    top: int = 0  # how many of the first step's most likely tokens to return
    guided: bool = False  # by the request's scorers, token by token
    context: PromptContext = field(default_factory=PromptContext)  # of the prompt
    until: str = ""  # a text that ends the draw; the token that completes it is the last


@dataclass(frozen=True)
class Drawn:
    """The result of a Draw."""

    token_ids: Sequence[int]  # with the stop token, if sampled
    ended: bool  # by a stop token, not by max_tokens or `until`
    top: Sequence[tuple[int, float]] = ()  # (token, log π0 at temperature 1), most likely first
    kl: float = 0.0  # nats of guidance
    read_tokens: int = 0  # prefix tokens without cached K/V in the engine
    scorer_tokens: int = 0  # tokens that guidance sent through the scorers
    kl_tail: float = 0.0  # of `kl`, what cutting the tail costs before any steering


@dataclass(frozen=True)
class Score:
    """Score a sequence. `row` is a hint for caches: descendants should keep it."""

    sequence: TokenIds  # prompt included, at least two tokens
    row: int
    context: PromptContext = field(default_factory=PromptContext)  # of the prompt


@dataclass(frozen=True)
class ScoredSequence:
    """The result of a Score: value = Σ_i w_i·s_i, at strength β where a scorer depends on it."""

    value: float
    scores: dict[str, float] = field(default_factory=dict)
    scorer_tokens: int = 0  # tokens that went through the scorers' networks


@dataclass(frozen=True)
class Commit:
    """The answer begins with these tokens; this is final."""

    token_ids: TokenIds


Round = Commit | list[Draw] | list[Score]


@dataclass(frozen=True)
class Problem:
    """The task of a search: a continuation of `prompt` of at most `max_tokens`."""

    prompt: TokenIds
    max_tokens: int
    stop_tokens: frozenset[int]  # a token of these ends a sequence
    guidance: GuidanceParams  # with scorers resolved
    seed: int = 0
    index: int = 0  # of the prompt among those searched together
    turns: Turns | None = None  # the conversation that the prompt was made from, if any

    def seeds(self) -> Iterator[int]:
        """A seed for every draw, the same as those of `Sampler.sample`."""
        return (sample_seed(self.seed, self.index, i) for i in count())

    def draw(self, path: "Path", block: int | TextBlock, seed: int, *, guided: bool) -> Draw:
        """Request the next block of a path, or as many tokens as it may still have."""
        tokens, until = (block, "") if isinstance(block, int) else (block.tokens, block.until)
        left = min(tokens, self.max_tokens - len(path.token_ids))
        prefix = self.prompt + path.token_ids
        return Draw(prefix, left, seed, guided=guided, context=self.context, until=until)

    @property
    def context(self) -> PromptContext:
        """The prompt's context, for scorers that read text."""
        return PromptContext(len(self.prompt), self.turns)

    @property
    def guided(self) -> bool:
        """Whether tokens are drawn from the guided policy."""
        return self.guidance.beta != 0

    def is_open(self, path: "Path") -> bool:
        """Whether a path can be extended."""
        return not path.ended and len(path.token_ids) < self.max_tokens


@dataclass(frozen=True)
class Path:
    """A continuation of the prompt, and its value so far."""

    token_ids: TokenIds = ()
    ended: bool = False
    kl: float = 0.0
    value: float = 0.0  # of the bare prompt: 0
    scores: dict[str, float] = field(default_factory=dict)
    kl_tail: float = 0.0

    def then(self, drawn: Drawn) -> "Path":
        """The path extended by a draw; not yet scored."""
        return Path(
            self.token_ids + tuple(drawn.token_ids),
            drawn.ended,
            self.kl + drawn.kl,
            kl_tail=self.kl_tail + drawn.kl_tail,
        )


@dataclass
class Usage:
    """Token counts of a search."""

    prompt_tokens: int
    drawn_tokens: int = 0  # drawn from the base, kept or not
    read_tokens: int = 0  # prompt and prefix tokens that the base read without cached K/V
    scorer_tokens: int = 0  # through the scorers' networks

    def add(self, result: Drawn | ScoredSequence) -> None:
        """Count a result."""
        self.scorer_tokens += result.scorer_tokens
        if isinstance(result, Drawn):
            self.drawn_tokens += len(result.token_ids)
            self.read_tokens += result.read_tokens


@dataclass(frozen=True)
class Result:
    """The answer of a search."""

    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    value: float
    scores: dict[str, float]
    kl: float  # nats of token-level guidance, without what the search's choices add
    usage: Usage
    facts: dict[str, Any]  # further results of the method
    kl_tail: float = 0.0  # of `kl`


Rounds = Generator[Round, Any, tuple[Path, dict[str, Any]]]
"""A method's own rounds; it returns the chosen path and its facts."""

Search = Generator[Round, Any, Result]


def counted(problem: Problem, method: Rounds) -> Search:
    """A method as a search: the same rounds, with every token counted."""
    usage = Usage(len(problem.prompt))
    results: Any = None
    while True:
        try:
            yielded = method.send(results)
        except StopIteration as end:
            path, facts = end.value
            reason: Literal["stop", "length"] = "stop" if path.ended else "length"
            return Result(
                list(path.token_ids),
                reason,
                path.value,
                path.scores,
                path.kl,
                usage,
                facts,
                path.kl_tail,
            )
        results = yield yielded
        for result in results or ():
            usage.add(result)


def scored(
    problem: Problem, paths: Sequence[Path]
) -> Generator[list[Score], list[ScoredSequence], list[Path]]:
    """The same paths with their values; equal paths are scored once."""
    distinct = list(dict.fromkeys(path.token_ids for path in paths))
    rows = enumerate(distinct)
    results = yield [Score(problem.prompt + ids, row, problem.context) for row, ids in rows]
    scores = dict(zip(distinct, results, strict=True))
    return [
        replace(path, value=scores[path.token_ids].value, scores=scores[path.token_ids].scores)
        for path in paths
    ]
