"""Function scorers: what the function is called with, for every value of `reads`."""

import random
import zlib
from typing import get_args

import numpy as np
import pytest
import torch

import tokenizers_made
from trimtab.config import GuidanceConfig
from trimtab.errors import ScorerLoadError
from trimtab.guide import Guide
from trimtab.loading import load_scorers
from trimtab.params import GuidanceParams
from trimtab.rows import Row
from trimtab.scorers import CompositeScorer, FunctionScorer
from trimtab.scorers.function import Reads
from trimtab.scoring.text import Prompt, PromptContext
from trimtab.testing import check_scorer

READS = get_args(Reads)
SAID = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Write a review."},
    {"role": "assistant", "content": "Of what?"},
    {"role": "user", "content": "A phone. 🙂"},
]
BEGUN = [*SAID, {"role": "assistant", "content": "Well, ", "open": True}]


def mark(*arguments):
    """A number that tells every other argument apart; float32 has it exactly."""
    return float(zlib.crc32(repr(arguments).encode()) % 2**20)


def one(argument):
    return mark(argument)


def two(prompt, answer):
    return mark(prompt, answer)


@pytest.fixture(scope="module")
def base():
    return tokenizers_made.base()


def load(base, reads, function="one", name=__name__):
    spec = {"path": f"{name}:{function}", "family": "function", "reads": reads}
    config = GuidanceConfig.parse({"trimtab": {"scorers": {"f": spec}}})
    return load_scorers(config, max_length=512, vocab_size=9, tokenizer=base)["f"]


def rows(base, seed, n=8):
    """Prompts in the base's template, answers, and candidates: words, specials, bytes."""
    draw = random.Random(seed)
    words = ["good", " phone", " very", "ä", " 🙂", ".", "\n", " the", "한"]
    prefixes, candidates, prompts = [], [], []
    for row in range(n):
        head = base.encode("Write a review. ", add_special_tokens=False)
        head = [*head, *draw.choices(base.all_special_ids, k=2), draw.randrange(len(base))]
        text = "".join(draw.choices(words, k=draw.randrange(6)))
        answer = base.encode(text, add_special_tokens=False)
        strays = draw.sample(range(len(base)), 4)
        prefixes.append(np.array([*head, *answer]))
        candidates.append(np.array([*strays, draw.choice(base.all_special_ids)]))
        prompts.append(Prompt(len(head), (None, SAID, BEGUN)[row % 3]))
    return prefixes, candidates, prompts


def called_with(base, reads, prefix, token, prompt):
    """The arguments of the function for one candidate, from the documentation."""
    ids = [*prefix.tolist(), int(token)]
    if reads == "tokens":
        return (ids,)
    if reads == "text":
        return (base.decode(ids),)
    before, whole = (
        base.decode(part, skip_special_tokens=True).rstrip("\ufffd")
        for part in (ids[: prompt.length], ids)
    )
    assert whole.startswith(before)
    answer = whole[len(before) :]
    if reads == "answer":
        return (answer,)
    if reads == "pair":
        return (before if prompt.turns is None else "A phone. 🙂", answer)
    if prompt.turns is None:
        question = {"role": "user", "content": before}
        return ([question, {"role": "assistant", "content": answer}],)
    said = answer if prompt.turns is SAID else f"Well, {answer}"
    return ([*SAID, {"role": "assistant", "content": said}],)


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("seed", range(3))
def test_a_score_is_a_direct_call_on_the_final_text(base, reads, seed):
    scorer = load(base, reads, "two" if reads == "pair" else "one")
    prefixes, candidates, prompts = rows(base, seed)
    expected = [
        mark(*called_with(base, reads, prefix, token, prompt))
        for prefix, group, prompt in zip(prefixes, candidates, prompts, strict=True)
        for token in group
    ]
    assert len(set(expected)) > len(prefixes)
    count = len(prefixes)
    scores = scorer.score(range(count), prefixes, candidates, [1.0] * count, prompts)
    assert scores.tolist() == expected
    # Row by row, in another order, under other keys and under keys of other rows: the same.
    at = 0
    for row in range(count):
        for key in (row, 100 + row, 0):
            alone = scorer.score(
                [key], [prefixes[row]], [candidates[row][::-1]], [1.0], [prompts[row]]
            )
            assert alone.tolist()[::-1] == expected[at : at + len(candidates[row])]
        scorer.forget(row)
        at += len(candidates[row])


@pytest.mark.parametrize("reads", READS)
def test_the_contract_of_scorers(base, reads):
    scorer = FunctionScorer(two if reads == "pair" else one, base, reads=reads)
    check_scorer(scorer, vocab_size=len(base))


@pytest.mark.parametrize("reads", READS)
def test_a_row_of_an_engine_brings_its_conversation(base, reads):
    """Through the guide, at two steps of an answer."""
    seen = []

    def function(*arguments):
        seen.append(arguments)
        return mark(*arguments)

    guide = Guide({"f": FunctionScorer(function, base, reads=reads)})
    prompt = np.array(base.encode("<ignored> the prompt", add_special_tokens=False))
    answer = base.encode(" good phone", add_special_tokens=False)
    params = GuidanceParams(scorers={"f": 1.0}, k=3, mass=1.0, trace=True)
    row = Row(params, len(prompt), record_key="r", context=PromptContext(turns=SAID))
    logits = torch.randn(1, len(base), generator=torch.Generator().manual_seed(0))
    for length in (0, len(answer)):
        row.prefix = np.array([*prompt, *answer[:length]])
        guide.step(logits.clone(), [(0, row)])
    assert row.fault is None
    for length, calls in ((0, seen[:3]), (len(answer), seen[3:])):
        trace = row.steps[len(prompt) + length].trace
        prefix = np.array([*prompt, *answer[:length]])
        for token, score, arguments in zip(
            trace["candidates"], trace["scores"]["f"], calls, strict=True
        ):
            expected = called_with(base, reads, prefix, token, Prompt(len(prompt), SAID))
            assert arguments == expected
            assert score == mark(*expected)


def test_a_function_may_change_what_it_is_given(base):
    def spoil(messages):
        result = mark(messages)
        messages[0]["content"] = "spoilt"
        messages.clear()
        return result

    scorer = FunctionScorer(spoil, base, reads="chat")
    prompt, token = Prompt(1, SAID), np.array([5])
    first, second = (scorer.score([0], [token], [token], [1.0], [prompt]) for _ in range(2))
    assert torch.equal(first, second)
    assert SAID[0]["content"] == "Be kind."


def test_a_conversation_without_a_user_is_refused_where_one_is_read(base):
    alone = [{"role": "system", "content": "secret"}]
    pair = FunctionScorer(two, base, reads="pair")
    assert pair.refusal(alone) == "it needs a message with the role user"
    assert pair.refusal(SAID) is None
    assert FunctionScorer(one, base, reads="chat").refusal(alone) is None
    assert FunctionScorer(one).refusal(alone) is None


def test_a_composite_of_one_that_reads_conversations_reads_them(base):
    ids, pair = FunctionScorer(one), FunctionScorer(two, base, reads="pair")
    assert CompositeScorer({"a": (ids, 1.0), "b": (pair, 1.0)}).reads == "pair"
    assert CompositeScorer({"a": (ids, 1.0)}).reads == "tokens"


@pytest.mark.parametrize(
    ("reads", "function", "message"),
    [
        ("pair", "one", r"reads=pair calls .*:one with \(prompt, answer\), which it does not"),
        ("chat", "two", r"reads=chat calls .*:two with \(messages\), which it does not accept"),
        (None, "two", r"reads=tokens calls .*:two with \(ids\)"),
        ("all", "one", "reads"),
    ],
)
def test_what_a_function_cannot_read_is_refused_at_start(base, reads, function, message):
    with pytest.raises(ScorerLoadError, match=message) as caught:
        load(base, reads, function)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reads", READS[1:])
def test_text_needs_the_bases_tokenizer(reads):
    with pytest.raises(ScorerLoadError, match="needs the base's tokenizer, and there is none"):
        load(None, reads, "two" if reads == "pair" else "one")
