"""Ensembles in training: resamples by prompt, each head's loss, and checkpoints of them."""

import json

import numpy as np
import pytest
import torch

from trimtab_lab.worlds.tiny import EOS, Tiny, config
from trimtab_models import checkpoint, demo, networks
from trimtab_models.objectives.bradley_terry import BradleyTerry
from trimtab_models.objectives.plackett_luce import PlackettLuce
from trimtab_models.objectives.td_lambda import TdLambda
from trimtab_models.rows import Rollout, pad
from trimtab_models.scoring import prefix_scores
from trimtab_models.training import ensembles
from trimtab_models.training.config import load
from trimtab_models.training.trainer import train

HEADS = 5


def test_resamples_are_of_prompts_by_the_seed():
    prompts = [[1, 2, i] for i in range(400)]
    counts = ensembles.counts(prompts, HEADS, 0)
    assert counts.shape == (HEADS, 400)
    assert torch.equal(counts, ensembles.counts(prompts, HEADS, 0))
    assert torch.equal(counts[:, 3:4], ensembles.counts([prompts[3]], HEADS, 0))
    assert not torch.equal(counts, ensembles.counts(prompts, HEADS, 1))
    each = counts.double().mean(1)
    assert (each - 1).abs().max() < 4 * 400**-0.5
    assert counts.double().var() == pytest.approx(1, abs=0.15)
    pairs = np.corrcoef(counts.numpy())[~np.eye(HEADS, dtype=bool)]
    assert np.abs(pairs).max() < 0.25


@pytest.mark.parametrize(
    ("objective", "kind"),
    [(TdLambda(0.5), "rollouts"), (BradleyTerry(), "pairs"), (PlackettLuce(), "ranked")],
    ids=lambda one: getattr(one, "name", one),
)
def test_the_loss_is_that_of_each_head_on_its_resample(objective, kind):
    """The reference repeats the items and collates them anew."""
    items = Tiny().sample(kind, 6, seed=2)
    rows = objective.collate(items, EOS)
    generator = torch.Generator().manual_seed(4)
    outputs = torch.randn(*rows.input_ids.shape, HEADS, generator=generator)
    counts = torch.tensor([[1] * 6, [0, 2, 0, 1, 3, 0], [0] * 6, [0, 0, 0, 0, 0, 1], [2] * 6])
    losses = []
    for head, own in enumerate(counts.tolist()):
        repeated = [item for item, n in zip(items, own, strict=True) for _ in range(n)]
        if repeated:
            of = [r for i, n in enumerate(own) for _ in range(n) for r in _rows(rows.groups, i)]
            part = objective.collate(repeated, EOS)
            width = part.input_ids.shape[1]
            losses.append(objective.loss(outputs[of, :width, head : head + 1], part))
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(ensembles.loss(objective, outputs, rows, counts), expected)
    assert len(losses) == 4
    none = ensembles.loss(objective, outputs.requires_grad_(), rows, torch.zeros_like(counts))
    none.backward()
    assert none == 0


def _rows(groups, item):
    return (groups == item).nonzero()[:, 0].tolist()


@pytest.mark.slow
def test_every_head_learns_and_they_differ(tmp_path):
    """Whether an answer's first token is 1, from texts of two tokens."""
    random = np.random.default_rng(0)

    def rollouts(n):
        texts = random.choice([1, 2], (n, 6)).tolist()
        return [Rollout(text[:4], text[4:], float(text[4] == 1)) for text in texts]

    torch.manual_seed(0)
    model = networks.build("scalar", config(), bins=HEADS)
    train(
        TdLambda(1.0),
        model,
        rollouts(300),
        tmp_path / "run",
        pad_id=EOS,
        ensemble=HEADS,
        epochs=8,
        learning_rate=3e-3,
        disable_tqdm=True,
        logging_steps=50,
        save_steps=1000,
    )
    rows = pad(rollouts(50), EOS)
    with torch.inference_mode():
        values = rows.gather(model(rows.input_ids).logits)[:, 0]  # [rows, heads]
    errors = (values - rows.labels[:, None]).abs().mean(0)
    assert errors.max() < 0.4  # a constant has 0.5
    assert values.std(-1).mean() > 0.005


@pytest.mark.slow
def test_train_makes_a_checkpoint_of_several_heads(tmp_path):
    answers = [
        {"prompt": demo.chat(f"q{i}"), "completion": text, "reward": reward}
        for i in range(12)
        for text, reward in (("It was lovely.", 1.0), ("It was awful.", -1.0))
    ]
    file = tmp_path / "rollouts.jsonl"
    file.write_text("\n".join(map(json.dumps, answers)))
    fields = {"base": "demo", "data": str(file), "out": str(tmp_path / "many"), "ensemble": 3}
    fields |= {"layers": 1, "validation": 0.2, "trainer.disable_tqdm": True}
    from trimtab_models.training.run import run

    def settings(**more):
        return [f"{key}={json.dumps(value)}" for key, value in {**fields, **more}.items()]

    out = run(load(None, settings(), "td-lambda"))
    model, info = checkpoint.load(out)
    assert (info.family, info.heads) == ("head", 3)
    head = networks.split(model)[1].weight
    assert len(head) == 3
    assert info.deviation > 0
    more = run(load(None, settings(scorer=str(out), out=str(tmp_path / "more")), "td-lambda"))
    again = networks.split(checkpoint.load(more)[0])[1].weight
    assert torch.nn.functional.cosine_similarity(head, again).min() > 0.9  # continued, not new
    [scores] = prefix_scores(model, info, [Rollout([5, 6], [7, 8], 0.0)], 0)
    with torch.inference_mode():
        values = model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0, 2:]
    torch.testing.assert_close(scores, values.mean(-1))


@pytest.mark.parametrize(
    ("objective", "more", "text"),
    [
        ("distribution", {}, "no head of one value"),
        ("gains", {}, "no head of one value"),
        ("dpo", {}, "no head of one value"),
        ("q-exact", {}, "no head of one value"),
        ("td-lambda", {"probe.rank": 4}, "leave out probe"),
        ("td-lambda", {"lora.merge": False}, "lora.merge"),
        ("td-lambda", {"ensemble": 1}, "greater than or equal to 2"),
        ("td-lambda", {"ensemble": 65}, "less than or equal to 64"),
    ],
)
def test_an_ensemble_needs_scalar_heads(objective, more, text):
    fields = {"base": "demo", "data": "x", "out": "y", "ensemble": 4, **more}
    with pytest.raises(ValueError, match=text):
        load(None, [f"{key}={json.dumps(value)}" for key, value in fields.items()], objective)
