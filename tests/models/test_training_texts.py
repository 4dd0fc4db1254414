"""Rows of texts: the loss on drawn prefixes is the objective's own, and no row sees the future."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import DebertaV2Config, GPTNeoXConfig, PreTrainedTokenizerFast, RobertaConfig

from trimtab_models import demo, networks, pretrained
from trimtab_models import texts as forms
from trimtab_models.objectives import OBJECTIVES
from trimtab_models.objectives.returns import lambda_returns
from trimtab_models.rows import Pair, Rollout, pad
from trimtab_models.texts import Texts
from trimtab_models.training.texts import loop
from trimtab_models.training.texts import rows as draw

FACES = "the room was lovely 😀 and the staff 中文 were kind é to us"


@pytest.fixture(scope="module")
def base() -> Any:
    return pretrained.tokenizer(demo.base())


@pytest.fixture(scope="module")
def own() -> PreTrainedTokenizerFast:
    """Bytes, with special tokens around a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{letter: n for n, letter in enumerate(letters, 2)}}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    ends = {"bos_token": "<s>", "pad_token": "</s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **ends)


@pytest.fixture
def texts(base: Any, own: Any) -> Texts:
    return Texts(base, own, "text", 512, causal=True, start=(0,))


def _pieces(base: Any, n: int, seed: int) -> list[list[int]]:
    """Tokens of texts with characters of several tokens."""
    rng = random.Random(seed)
    words = FACES.split()
    made = [" ".join(rng.choices(words, k=rng.randint(1, 5))) for _ in range(n)]
    return [base(text, add_special_tokens=False).input_ids for text in made]


def _rollouts(base: Any, seed: int = 0) -> list[Rollout]:
    prompt = base("How was it?", add_special_tokens=False).input_ids
    return [Rollout(prompt, ids, float(n % 2)) for n, ids in enumerate(_pieces(base, 6, seed))]


def _pairs(base: Any) -> list[Pair]:
    prompt = base("How was it?", add_special_tokens=False).input_ids
    sides = _pieces(base, 12, 1)
    return [Pair(prompt, a, b) for a, b in zip(sides[::2], sides[1::2], strict=True) if a != b]


def _value(ids: list[int]) -> float:
    """A score of a text that any change of it changes."""
    return float(np.sin(np.dot(np.arange(1, len(ids) + 1) ** 1.5, ids)))


def _outputs(network: Any, batch: Any) -> torch.Tensor:
    """`_value` of each text, at its last token."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    outputs = torch.zeros(*ids.shape, 1)
    for n, (row, length) in enumerate(zip(ids.tolist(), mask.sum(-1).tolist(), strict=True)):
        outputs[n, length - 1] = _value(row[:length])
    return outputs


def _reference(objective: Any, items: list[Any], texts: Texts) -> float:
    """The objective's loss over all prefixes, each scored as a text of its own."""
    rows = objective.collate(items, 0)
    outputs = torch.zeros(*rows.input_ids.shape, 1)
    for n in range(len(rows.prompts)):
        start, length = int(rows.prompts[n]), int(rows.completions[n])
        ids = rows.input_ids[n].tolist()
        for t in range(1, length + 1):
            [one] = texts.inputs(ids[:start], [ids[start : start + t]])
            outputs[n, start + t - 1] = _value(list(one["input_ids"]))
    return float(objective.loss(outputs, rows))


@pytest.mark.parametrize("name", ["cd-fudge", "fudge", "bradley-terry", "bradley-terry-full"])
def test_all_prefixes_as_rows_have_the_objectives_own_loss(
    name: str, base: Any, texts: Texts
) -> None:
    objective = OBJECTIVES[name]()
    items: list[Any] = _pairs(base) if objective.data == "pairs" else _rollouts(base)
    rows = draw.draw(objective, items, 1000, seed=0)
    if name != "bradley-terry-full":
        assert len(rows) > 20
        assert len({(id(row.item), row.length) for row in rows}) == len(rows)
    batch = loop.collate(objective, rows, texts, 0)
    loss = loop.loss_of(objective, _outputs, None, batch)
    assert float(loss) == pytest.approx(_reference(objective, items, texts), rel=1e-5)


def test_rad_draws_later_prefixes_more_often(base: Any, texts: Texts) -> None:
    objective, items = OBJECTIVES["rad"](), _rollouts(base)
    rows = draw.draw(objective, items, 4000, seed=0)
    counts = np.bincount([row.length for row in rows if row.item is items[0]])
    length = len(items[0].completion)
    expected = 4000 * np.arange(length + 1) / (length * (length + 1) / 2)
    assert len(counts) == length + 1
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected) + 1).all()
    losses = [
        float(loop.loss_of(objective, _outputs, None, loop.collate(objective, [row], texts, 0)))
        for row in {(id(row.item), row.length): row for row in rows}.values()
    ]
    assert len(losses) == sum(len(item.completion) for item in items)


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.95, 1.0])
def test_the_mean_target_is_the_lambda_return(decay: float) -> None:
    """G over 4,000 draws of the later prefix, within 5 standard errors."""
    values = torch.tensor([[0.3, -1.0, 0.7, 2.0, 0.1]])
    expected = lambda_returns(values, torch.tensor([1.5]), torch.tensor([5]), decay)[0]
    rng = np.random.default_rng(0)
    for t in range(1, 6):
        later = [draw._later(t, 5, decay, rng) for _ in range(4000)]
        assert all(n is None or t < n < 5 for n in later)
        targets = np.array([1.5 if n is None else float(values[0, n - 1]) for n in later])
        error = targets.std() / np.sqrt(len(targets))
        assert abs(targets.mean() - float(expected[t - 1])) <= 5 * error + 1e-6


def test_the_target_is_the_later_texts_value(base: Any, texts: Texts) -> None:
    objective, items = OBJECTIVES["td-lambda"](0.5), _rollouts(base)
    rows = draw.draw(objective, items, 3, seed=0)
    assert {row.later is None for row in rows} == {True, False}
    batch = loop.collate(objective, rows, texts, 0)
    loss = loop.loss_of(objective, _outputs, None, batch)

    def value(row: draw.Row, length: int) -> float:
        [one] = texts.inputs(row.item.prompt, [row.item.completion[:length]])
        return _value(list(one["input_ids"]))

    targets = [row.item.label if row.later is None else value(row, row.later) for row in rows]
    errors = [(value(row, row.length) - g) ** 2 for row, g in zip(rows, targets, strict=True)]
    assert float(loss) == pytest.approx(np.mean(errors), rel=1e-4)


def test_the_number_of_rows_and_their_seed(base: Any) -> None:
    items = _rollouts(base) * 20
    for name, expected in (("cd-fudge", 180), ("rad", 180)):
        objective = OBJECTIVES[name]()
        rows = draw.draw(objective, items, 1.5, seed=3)
        assert abs(len(rows) - expected) <= (0 if name == "cd-fudge" else 25)
        assert rows == draw.draw(objective, items, 1.5, seed=3)
        assert rows != draw.draw(objective, items, 1.5, seed=4)
    pairs = _pairs(base) * 20
    rows = draw.draw(OBJECTIVES["bradley-terry"](), pairs, 1, seed=0)
    assert [row.item for row in rows] == pairs
    assert len({row.length for row in rows}) > 5
    assert draw.draw(OBJECTIVES["cd-fudge"](), [], 2, seed=0) == []


def test_a_row_knows_nothing_of_what_follows_its_prefix(base: Any, texts: Texts) -> None:
    objective = OBJECTIVES["cd-fudge"]()
    [first, second] = _pieces(base, 2, 5)
    for t in range(1, len(first) + 1):
        one, other = (
            loop.collate(objective, [draw.Row(Rollout([7], first[:t] + rest, 1.0), t)], texts, 0)
            for rest in (first[t:], second)
        )
        assert all(torch.equal(one[name], other[name]) for name in ("input_ids", "ends"))


def test_a_text_never_ends_inside_a_character(base: Any, texts: Texts) -> None:
    ids = base(FACES, add_special_tokens=False).input_ids
    read = [
        texts.tokenizer.decode(one["input_ids"], skip_special_tokens=True)
        for one in texts.inputs([], [ids[:t] for t in range(len(ids) + 1)])
    ]
    assert all(FACES.startswith(text) for text in read)
    assert len(set(read)) < len(read), "no token ends inside a character: nothing is tested"
    assert any(base.decode(ids[:t]).endswith("\ufffd") for t in range(len(ids)))


def test_a_long_text_keeps_its_end(base: Any, own: Any) -> None:
    short = Texts(base, own, "text", 16, causal=True, start=(0,))
    ids = base(FACES, add_special_tokens=False).input_ids
    [one] = short.inputs(ids, [ids])
    [whole] = Texts(base, own, "text", 512, causal=True, start=(0,)).inputs(ids, [ids])
    kept = list(one["input_ids"])
    assert kept[0] == 0
    assert 12 <= len(kept) <= 16
    assert list(whole["input_ids"])[1 - len(kept) :] == kept[1:]


SIZES = {"vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_encoders_are_known_by_their_configuration() -> None:
    assert networks.is_encoder(DebertaV2Config(**SIZES))
    assert networks.is_encoder(RobertaConfig(**SIZES))
    assert not networks.is_encoder(RobertaConfig(**SIZES, is_decoder=True))
    assert not networks.is_encoder(GPTNeoXConfig(**SIZES))
    assert not networks.is_encoder(pretrained.configuration(demo.base()))


def test_a_roberta_reads_less_than_its_positions(own: Any, base: Any) -> None:
    config = RobertaConfig(**SIZES, max_position_embeddings=40, pad_token_id=1, intermediate_size=8)
    assert forms.of(config, own, base, "pair").window == 38
    causal = GPTNeoXConfig(**SIZES, max_position_embeddings=40, intermediate_size=8)
    assert forms.of(causal, own, base, "text").window == 40
    assert pad([Rollout([1], [2], 0.0)], 0).prompts.tolist() == [1]
