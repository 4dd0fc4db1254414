"""Comparisons of answers: what a user preferred, and pairs that may be asked about next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_COMPARISONS = 500
MAX_CANDIDATES = 100
"""Maximum prompts with answers that may be compared next."""
MAX_OFFERED = 8
"""Maximum answers of one of them."""
FIRST, SECOND, TIE = 0, 1, 2
"""Outcomes of a comparison."""
TIED = "tie"

Text = Annotated[str, Field(min_length=1)]


def _no_switch(value: Any) -> Any:
    """Python accepts true as 1; here it would hide a mistake."""
    if isinstance(value, bool):
        raise ValueError('expected 0, 1 or "tie"')
    return value


class Turn(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str


@dataclass(frozen=True)
class Question:
    """A prompt as text, or a conversation that the base's chat template renders."""

    prompt: str | None = None
    turns: tuple[tuple[str, str], ...] = ()

    def messages(self) -> list[dict[str, str]] | None:
        """The conversation; None if it is a text."""
        if self.prompt is not None:
            return None
        return [{"role": role, "content": content} for role, content in self.turns]


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    prompt: Text | None = Field(None, description="the prompt as text")
    messages: Annotated[list[Turn], Field(min_length=1)] | None = Field(
        None, description="the conversation, instead of prompt"
    )

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send exactly one of prompt and messages")
        return self

    @property
    def question(self) -> Question:
        """What was to be answered."""
        turns = tuple((turn.role, turn.content) for turn in self.messages or ())
        return Question(self.prompt, turns)


class Comparison(_Row):
    """Two answers to a prompt, and which is better: chosen and rejected, or answers and choice."""

    chosen: Text | None = Field(None, description="the better answer")
    rejected: Text | None = Field(None, description="the worse answer")
    answers: Annotated[list[Text], Field(min_length=2, max_length=2)] | None = Field(
        None, description="two answers, instead of chosen and rejected"
    )
    choice: Annotated[Literal[0, 1, "tie"] | None, BeforeValidator(_no_switch)] = Field(
        None, description='which of answers is better: 0, 1 or "tie"'
    )

    @model_validator(mode="after")
    def _two_answers(self) -> Self:
        named = [self.chosen is not None, self.rejected is not None]
        listed = [self.answers is not None, self.choice is not None]
        if not (all(named) and not any(listed)) and not (all(listed) and not any(named)):
            raise ValueError("send chosen and rejected, or answers and choice")
        if self.pair[0] == self.pair[1]:
            raise ValueError("the two answers are the same")
        return self

    @property
    def pair(self) -> tuple[str, str]:
        """The two answers, in the order of `outcome`."""
        first, second = self.answers or (self.chosen, self.rejected)
        return str(first), str(second)

    @property
    def outcome(self) -> int:
        """FIRST, SECOND or TIE."""
        if self.answers is None:
            return FIRST
        return TIE if self.choice == TIED else int(self.choice or FIRST)


class Candidate(_Row):
    """Answers to a prompt, of which two may be compared next."""

    answers: Annotated[list[Text], Field(min_length=2, max_length=MAX_OFFERED)] = Field(
        description="answers to the prompt"
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.answers)) < len(self.answers):
            raise ValueError("two of the answers are the same")
        return self


Comparisons = Annotated[list[Comparison], Field(min_length=1, max_length=MAX_COMPARISONS)]
Candidates = Annotated[list[Candidate], Field(max_length=MAX_CANDIDATES)]


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt."""

    question: Question
    first: str
    second: str


def compared(comparisons: Sequence[Comparison]) -> list[Pair]:
    """The pairs that a user has compared."""
    return [Pair(one.question, *one.pair) for one in comparisons]


def open_pairs(comparisons: Sequence[Comparison], candidates: Sequence[Candidate]) -> list[Pair]:
    """The pairs that may be asked about next: of the candidates, or of the answers at hand.

    Without candidates these are the pairs of answers to one prompt that are not yet compared.
    """
    known = {
        (pair.question, frozenset((pair.first, pair.second))) for pair in compared(comparisons)
    }
    offered: dict[Question, dict[str, None]] = {}
    if candidates:
        for one in candidates:
            offered.setdefault(one.question, {}).update(dict.fromkeys(one.answers))
    else:
        for pair in compared(comparisons):
            offered.setdefault(pair.question, {}).update({pair.first: None, pair.second: None})
    return [
        Pair(question, first, second)
        for question, answers in offered.items()
        for first, second in combinations(list(answers)[:MAX_OFFERED], 2)
        if (question, frozenset((first, second))) not in known
    ]


def to_score(pairs: Sequence[Pair]) -> Mapping[Question, list[str]]:
    """The different answers of pairs, by prompt."""
    answers: dict[Question, dict[str, None]] = {}
    for pair in pairs:
        answers.setdefault(pair.question, {}).update({pair.first: None, pair.second: None})
    return {question: list(texts) for question, texts in answers.items()}


def fields_of(model: type[BaseModel], record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a line of a file that a row of comparisons has; files may have others."""
    return {name: value for name, value in record.items() if name in model.model_fields}
