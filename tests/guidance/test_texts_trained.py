"""Scorers of any architecture, from training to serving: one score everywhere.

DeBERTa-v2, RoBERTa and GPT-NeoX of random weights, each with a tokenizer that is not the base's.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    set_seed,
)

import tokenizers_made
from trimtab.config import GuidanceConfig
from trimtab.loading import load_scorers
from trimtab.scorers import HeadScorer, TextScorer
from trimtab.scoring.cross import CrossBackbone
from trimtab.scoring.text import Prompt
from trimtab_models import checkpoint, data, demo, networks, pretrained
from trimtab_models import texts as forms
from trimtab_models.demo import world
from trimtab_models.objectives import OBJECTIVES
from trimtab_models.report.__main__ import main as report
from trimtab_models.rows import Rollout
from trimtab_models.scoring import prefix_scores
from trimtab_models.training import initial
from trimtab_models.training.__main__ import main
from trimtab_models.training.config import load
from trimtab_models.training.saves import SafeTrainer
from trimtab_models.training.texts import loop, texts_of
from trimtab_models.training.texts.rows import Row

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 130,
    "initializer_range": 0.3,  # new heads, too, are large enough for scores that differ
}
KINDS = ("deberta", "roberta", "neox")
READS = {"deberta": "pair", "roberta": "answer", "neox": "text"}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base() -> Any:
    return pretrained.tokenizer(demo.base())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, base: Any) -> Path:
    """The three networks, and rollouts and pairs of the demo world."""
    top = tmp_path_factory.mktemp("texts")
    unigram, bytes_ = tokenizers_made.unigram(), tokenizers_made.byte_level()
    set_seed(0)
    deberta = DebertaV2Config(
        vocab_size=len(unigram),
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
        position_buckets=16,
        pooler_hidden_size=16,
        pad_token_id=unigram.pad_token_id,
        **SIZES,
    )
    roberta = RobertaConfig(vocab_size=len(bytes_), pad_token_id=1, num_labels=1, **SIZES)
    made = {
        "deberta": (DebertaV2ForMaskedLM(deberta), unigram),
        "roberta": (RobertaForSequenceClassification(roberta), bytes_),
        "neox": (GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=len(bytes_), **SIZES)), bytes_),
    }
    for name, (model, tokenizer) in made.items():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # large enough for scores that differ
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(top / name)
        tokenizer.save_pretrained(top / name)
    draw = random.Random(0)
    rows = []
    for n in range(24):
        text = " ".join(world.review("phone", draw).split()[:12]) + " 😀"
        rows.append({"prompt": f"Review, {n % 6}:", "completion": text, "reward": n % 3 - 1.0})
    data.write(top / "rollouts.jsonl", rows)
    pairs = [
        {"prompt": one["prompt"], "chosen": one["completion"], "rejected": other["completion"]}
        for one, other in zip(rows[::2], rows[1::2], strict=True)
    ]
    data.write(top / "pairs.jsonl", pairs)
    return top


def _settings(place: Path, kind: str, out: Path, *sets: str, rows: str = "pairs") -> list[str]:
    return [
        "base=demo",
        f"scorer={place / kind}",
        f"data={place / rows}.jsonl",
        f"out={out}",
        "batch_size=6",
        "learning_rate=1e-3",
        "logging_steps=2",
        "save_steps=2",
        "trainer.disable_tqdm=true",
        *sets,
    ]


def _train(objective: str, settings: list[str]) -> int:
    return main([objective, *(part for one in settings for part in ("--set", one))])


def _served(base: Any, path: Path, **fields: str) -> Any:
    section = {"scorers": {"s": {"path": str(path), **fields}}}
    config = GuidanceConfig.parse({"trimtab": section})
    return load_scorers(config, max_length=512, vocab_size=len(base), tokenizer=base)["s"]


def _read(base: Any, path: Path, model: Any) -> forms.Texts:
    tokenizer = pretrained.tokenizer(path)
    return forms.of(model.config, tokenizer, base, checkpoint.read_info(path).reads or "text")


@torch.no_grad()
def _of_transformers(path: Path, kind: str, prompt: str, answer: str) -> float:
    """The score of one text by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    if kind == "neox":
        ids = tokenizer(prompt + answer, return_tensors="pt")
        value = AutoModelForTokenClassification.from_pretrained(path).eval()(**ids).logits[0, -1, 0]
        return float(value)
    parts = {"pair": [prompt, answer], "answer": [answer]}[READS[kind]]
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    return float(model(**tokenizer(*parts, return_tensors="pt")).logits[0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_one_in_training_in_serving_and_in_transformers(
    kind: str, place: Path, tmp_path: Path, base: Any
) -> None:
    out = tmp_path / "out"
    sets = (f"texts.reads={READS[kind]}", "texts.rows=3", "epochs=2", "validation=0.25")
    assert _train("bradley-terry", _settings(place, kind, out, *sets)) == 0
    info = checkpoint.read_info(out)
    assert (info.family, info.reads) == ("head" if kind == "neox" else "text", READS[kind])
    assert info.prefix_auc is not None
    assert (out / "report.md").exists()
    scorer = _served(base, out)
    assert isinstance(scorer, HeadScorer if kind == "neox" else TextScorer)
    assert isinstance(getattr(scorer, "backbone", None), CrossBackbone) == (kind == "neox")
    assert scorer.reads == READS[kind]
    assert scorer.info == info

    model, _ = checkpoint.load(out)
    items = data.load(place / "rollouts.jsonl", "rollouts", base)[:3]
    scores = prefix_scores(model, info, items, 0, texts=_read(base, out, model))
    batch_of = _in_training(model, _read(base, out, model), items)
    for item, row, trained in zip(items, scores, batch_of, strict=True):
        assert row.std() > 0.01, "nothing to compare"
        np.testing.assert_allclose(trained, row.numpy(), atol=1e-5)
        prompts = [Prompt(len(item.prompt))] * len(item.completion)
        prefixes = [np.array([*item.prompt, *item.completion[:t]]) for t in range(len(row))]
        candidates = [np.array([token]) for token in item.completion]
        keys = list(range(len(row)))
        served = scorer.score(keys, prefixes, candidates, [1.0] * len(row), prompts)
        torch.testing.assert_close(served, row, atol=1e-5, rtol=1e-5)
        for t in (1, len(row) // 2, len(row)):
            answer = base.decode(item.completion[:t], skip_special_tokens=True).rstrip("\ufffd")
            prompt = base.decode(item.prompt)
            alone = _of_transformers(out, kind, prompt, answer)
            assert float(row[t - 1]) == pytest.approx(alone, abs=1e-5)


def _in_training(model: Any, texts: forms.Texts, items: list[Rollout]) -> list[list[float]]:
    """The values of every prefix as the loss reads them, in one batch of padded rows."""
    pad = loop.padding(model, texts)
    outputs = loop.text_reader(model.eval(), texts, pad)
    values = []
    for item in items:
        rows = [Row(item, t) for t in range(1, len(item.completion) + 1)]
        batch = loop.collate(OBJECTIVES["cd-fudge"](), rows, texts, pad)
        with torch.no_grad():
            every = outputs(model, batch)[..., 0]
        values.append(every[torch.arange(len(rows)), batch["ends"]].tolist())
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_the_future_leaves_the_score_alone(kind: str, place: Path, base: Any) -> None:
    config = load(None, _settings(place, kind, Path("out")), "bradley-terry")
    objective = OBJECTIVES["bradley-terry"]()
    texts = texts_of(config, objective, base)
    assert texts is not None
    set_seed(0)
    model = initial.network(config, objective).eval()
    prompt = base("How was it?", add_special_tokens=False).input_ids
    sides = [base(text, add_special_tokens=False).input_ids for text in (
        " The room was lovely and the staff were kind.",
        " The room was lovely but the food 😀 was cold and we left.",
    )]  # fmt: skip
    shared = next(i for i, (a, b) in enumerate(zip(*sides, strict=False)) if a != b)
    assert shared > 2
    info = checkpoint.ScorerInfo(family="text", reads="text")
    one, other = prefix_scores(
        model, info, [Rollout(prompt, s, 0.0) for s in sides], 0, texts=texts
    )
    torch.testing.assert_close(one[:shared], other[:shared], atol=1e-5, rtol=1e-5)
    assert (one[-1] - other[-1]).abs() > 1e-3
    if kind != "neox":  # the control: a whole answer in one forward tells a token what follows
        backbone = networks.split(model)[0]
        ids = [torch.tensor([texts.inputs(prompt, [s])[0]["input_ids"]]) for s in sides]
        states = [backbone(input_ids=row).last_hidden_state[0, 1] for row in ids]
        assert not torch.allclose(*states, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "objective", "sets"),
    [
        ("deberta", "td-lambda", ["options.decay=0.7"]),
        ("roberta", "fudge", ["options.threshold=0", "lora.r=2"]),
        ("neox", "rad", ["lora.r=2", "lora.merge=false"]),
    ],
)
def test_what_was_interrupted_goes_on_to_the_same_bits(
    kind: str,
    objective: str,
    sets: list[str],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def settings(out: str) -> list[str]:
        return _settings(place, kind, tmp_path / out, *sets, rows="rollouts")

    assert _train(objective, settings("whole")) == 0
    save = SafeTrainer._save_checkpoint

    def failing(self: Any, *arguments: Any) -> None:
        if self.state.global_step == 6:
            raise KeyboardInterrupt
        save(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SafeTrainer, "_save_checkpoint", failing)
        assert _train(objective, settings("cut")) == 130
    assert "interrupted; run the same command to resume" in capsys.readouterr().err
    assert _train(objective, settings("cut")) == 0
    [weights] = (tmp_path / "whole").glob("*model.safetensors")
    assert weights.read_bytes() == (tmp_path / "cut" / weights.name).read_bytes()
    logs = [(tmp_path / f"{name}.run/log.jsonl").read_text() for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    assert logs[0].count('"loss"') == 4
    assert _train(objective, [*settings("cut"), "texts.rows=3"]) == 1
    assert "changed since: texts" in capsys.readouterr().err
    info = checkpoint.read_info(tmp_path / "whole")
    assert info.is_value == (objective != "fudge")
    assert info.deviation > 1e-6


@pytest.mark.slow
def test_an_adapter_is_served_with_the_scores_of_the_merged_network(
    place: Path, tmp_path: Path, base: Any
) -> None:
    sets = ("lora.r=2", "lora.targets=[query,value]")
    outs = tmp_path / "merged", tmp_path / "adapter"
    assert _train("bradley-terry", _settings(place, "roberta", outs[0], *sets)) == 0
    more = (*sets, "lora.merge=false")
    assert _train("bradley-terry", _settings(place, "roberta", outs[1], *more)) == 0
    assert not (outs[1] / "model.safetensors").exists()
    prefixes = [np.array(base("The room was").input_ids)]
    candidates = [np.arange(20, 40)]
    merged, adapted = (_served(base, out).score([0], prefixes, candidates, [1.0]) for out in outs)
    assert merged.std() > 0.01
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_report_is_written_later(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _train("cd-fudge", _settings(place, "deberta", out, rows="rollouts")) == 0
    assert not (out / "report.md").exists()
    report([str(out), "--rollouts", str(place / "rollouts.jsonl")])
    assert "family `text`" in (out / "report.md").read_text()
    assert checkpoint.read_info(out).prefix_auc is not None


def test_a_reward_model_keeps_its_head_and_others_get_one(place: Path, tmp_path: Path) -> None:
    kept = networks.classifier(place / "roberta").state_dict()
    stored = RobertaForSequenceClassification.from_pretrained(place / "roberta").state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in stored.items())
    deberta = networks.classifier(place / "deberta")
    assert deberta.classifier.weight.shape == (1, 16)
    bert = BertModel(BertConfig(vocab_size=40, **SIZES), add_pooling_layer=False)
    bert.save_pretrained(tmp_path / "bert")
    assert networks.classifier(tmp_path / "bert").bert.pooler is not None
    with pytest.raises(ValueError, match="lacks the weights"):
        networks.classifier(tmp_path / "bert", fresh=False)
    several = RobertaForSequenceClassification(RobertaConfig(vocab_size=40, num_labels=3, **SIZES))
    several.save_pretrained(tmp_path / "several")
    with pytest.raises(ValueError, match="has 3 labels, and a scorer has one"):
        networks.classifier(tmp_path / "several")


@pytest.mark.parametrize(
    ("kind", "objective", "sets", "says"),
    [
        ("deberta", "distribution", [], "reads a text in both directions; choose bradley-terry, "),
        ("neox", "dpo", [], "has its own tokenizer; choose bradley-terry, "),
        ("roberta", "gains", [], "gains needs the scores of all prefixes from one pass"),
        ("deberta", "bradley-terry", ["options.ratio=0.5"], "set texts.rows instead"),
        ("deberta", "bradley-terry-full", ["texts.rows=2"], "reads each pair once, whole"),
        ("neox", "bradley-terry", ["texts.reads=pair"], "is causal and reads prompt and answer"),
        ("neox", "bradley-terry", ["scorer=null", "texts={}"], "texts: it is for scorers that"),
        ("neox", "td-lambda", ["scorer=demo", "texts={}"], "leave this out"),
    ],
)
def test_what_does_not_go_is_one_line(
    kind: str,
    objective: str,
    sets: list[str],
    says: str,
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sets = [f"scorer={demo.base()}" if one == "scorer=demo" else one for one in sets]
    assert _train(objective, _settings(place, kind, tmp_path / "out", *sets)) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("trimtab: ") == 1
    assert not (tmp_path / "out").exists()
