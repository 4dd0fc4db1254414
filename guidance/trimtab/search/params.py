"""SearchParams: the settings of a sequence-level search.

    {"method": "best_of_n", "n": 16}

Errors name the invalid fields, never their values.
"""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from trimtab import reasons
from trimtab.errors import InvalidGuidance
from trimtab.params import GuidanceParams, Number
from trimtab.utility import kind_of

MAX_SEQUENCES = 256
MAX_BEAMS = 64
MAX_BLOCK = 256
MAX_UNTIL = 100


class TextBlock(BaseModel):
    """A block that ends at a text, such as a line's end: a step of an answer."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    until: str = Field(
        min_length=1,
        max_length=MAX_UNTIL,
        description="the text that ends a block; the token that completes it is the block's last",
    )
    tokens: int = Field(64, ge=1, le=MAX_BLOCK, description="maximum tokens of a block")

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping) and not set(fields) <= set(cls.model_fields):
            raise ValueError("a block that ends at a text has the fields until and tokens")
        return fields


def _form(block: Any) -> str:
    return "text" if isinstance(block, Mapping | TextBlock) else "tokens"


Block = Annotated[
    Annotated[int, Field(ge=1, le=MAX_BLOCK), Tag("tokens")] | Annotated[TextBlock, Tag("text")],
    Discriminator(_form),
    Field(description="tokens per block, or the text that ends one"),
]


class SearchParams(BaseModel):
    """One method and its settings; see the subclasses."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    method: str

    @staticmethod
    def parse(fields: Any) -> "SearchParams":
        """Parse the `search` object of a request.

        Raises:
            InvalidGuidance: names at most three fields.
        """
        if not isinstance(fields, Mapping) or fields.get("method") not in list(METHODS):
            raise InvalidGuidance(
                'search must be an object such as {"method": "best_of_n", "n": 16}; '
                f"the methods are {', '.join(METHODS)}.",
                param="search",
            )
        try:
            return ANY.validate_python(dict(fields))
        except ValidationError as error:
            problems = reasons.fields(error, METHODS[fields["method"]].model_fields)
            message = f"Invalid search ({fields['method']}): {problems}."
            raise InvalidGuidance(message, param="search") from None

    def check(self, guidance: GuidanceParams, temperature: float) -> None:
        """Refuse settings that do not work together.

        Raises:
            InvalidGuidance: says what to change.
        """
        if self.method != "mcts" and temperature == 0:
            raise InvalidGuidance(
                f"{self.method} chooses among samples, which are all the same at temperature 0; "
                "send a temperature above 0.",
                param="temperature",
            )
        if guidance.said:
            raise InvalidGuidance(
                "a search compares texts by scorers, and principles score single tokens only; "
                "leave principles and negative_prompt out.",
                param="principles" if guidance.principles else "negative_prompt",
            )
        sent = guidance.model_fields_set
        if self.method == "mcts" and "tail" in sent and guidance.tail == "mean":
            raise InvalidGuidance(
                "mcts reads candidates only; leave tail out, or send 'truncate'.", param="tail"
            )
        if self.method == "mcts" and guidance.k == "all":
            raise InvalidGuidance("mcts reads candidates only; send a number as k.", param="k")
        if guidance.kl_budget is not None:
            raise InvalidGuidance(
                "a search has one strength; send beta instead of kl_budget.", param="kl_budget"
            )
        if any(kind_of(one)[0] == "cvar" for one in (guidance.utility or {}).values()):
            raise InvalidGuidance(
                "a search chooses among single answers, which have no worst share; send another "
                "utility than cvar.",
                param="utility",
            )
        if self.method == "smc" and guidance.bounded and guidance.beta <= 0:
            raise InvalidGuidance(
                "smc weighs answers by beta times their value; with floors or ceilings, send a "
                "beta above 0.",
                param="beta",
            )
        if guidance.on_error != "fail" or guidance.trace:
            raise InvalidGuidance(
                "a search cannot continue without its scorers and keeps no trace; leave on_error "
                "and trace out.",
                param="on_error" if guidance.on_error != "fail" else "trace",
            )

    def check_scorers(self, guidance: GuidanceParams, to_go: Collection[str]) -> None:
        """Refuse scorers whose scores lack the reward so far: a search compares answers.

        guidance: with scorers resolved. to_go: the scorers of which ScorerInfo.to_go is set.

        Raises:
            InvalidGuidance: names a scorer, and says what to train.
        """
        for name, weight in (guidance.scorers or {}).items():
            if weight != 0 and name in to_go:
                raise InvalidGuidance(
                    f"scorer '{name}' knows the return to go, not what an answer has gained, "
                    "so it compares the next tokens of one answer, but not answers of a search. "
                    "Leave search out, or train gains with discount 1 on the data.",
                    param="scorers",
                )


class BestOfN(SearchParams):
    """The best of n whole answers."""

    method: Literal["best_of_n"] = "best_of_n"
    n: int = Field(16, ge=1, le=MAX_SEQUENCES, description="answers to draw")


class Blockwise(SearchParams):
    """The best of n blocks, block after block."""

    method: Literal["blockwise"] = "blockwise"
    n: int = Field(8, ge=1, le=MAX_SEQUENCES, description="blocks to draw at a time")
    block: Block = 8


class Beam(SearchParams):
    """The best `width` of width·expand, block after block."""

    method: Literal["beam"] = "beam"
    width: int = Field(4, ge=1, le=MAX_BEAMS, description="beams kept")
    expand: int = Field(4, ge=1, le=MAX_BEAMS, description="blocks to draw per beam")
    block: Block = 8

    @model_validator(mode="after")
    def _check_size(self) -> "Beam":
        if self.width * self.expand > MAX_BEAMS:
            raise ValueError(f"width times expand must be at most {MAX_BEAMS}")
        return self


class Smc(SearchParams):
    """Twisted sequential Monte Carlo."""

    method: Literal["smc"] = "smc"
    particles: int = Field(16, ge=1, le=MAX_SEQUENCES)
    block: Block = 8
    threshold: Number = Field(
        0.5, ge=0, le=1, description="resample when ESS/particles is below this; 0: never"
    )


class Mcts(SearchParams):
    """Monte Carlo tree search over tokens."""

    method: Literal["mcts"] = "mcts"
    simulations: int = Field(16, ge=0, le=MAX_SEQUENCES, description="simulations per token")
    exploration: Number = Field(
        1.0, ge=0, le=1000, description="c of PUCT, in units of the scorers' value"
    )


METHODS: dict[str, type[SearchParams]] = {
    "best_of_n": BestOfN,
    "blockwise": Blockwise,
    "beam": Beam,
    "smc": Smc,
    "mcts": Mcts,
}
ANY: TypeAdapter[Any] = TypeAdapter(
    Annotated[BestOfN | Blockwise | Beam | Smc | Mcts, Field(discriminator="method")]
)
