"""Whitening: what a probe's projection is trained on, and that it leaves no trace."""

import torch
from torch import Tensor

from trimtab_models import demo, probe
from trimtab_models.probe import Probe, ProbeConfig
from trimtab_models.whitening import FLOOR, Whitened, restore, whiten

HIDDEN, TOKENS = 12, 200


def _embedding(seed: int) -> Tensor:
    """Unevenly spread, with a mean that is not 0."""
    draw = torch.Generator().manual_seed(seed)
    uneven = torch.randn(TOKENS, HIDDEN, generator=draw) * torch.logspace(-1, 1, HIDDEN)
    return uneven @ torch.randn(HIDDEN, HIDDEN, generator=draw) + 1


def _probe(seed: int) -> Probe:
    torch.manual_seed(seed)
    model = Probe(ProbeConfig(hidden_size=HIDDEN, rank=3, width=8))
    torch.nn.init.normal_(model.factors.weight)
    return model.eval()


def test_every_direction_of_a_whitened_embedding_has_a_mean_square_of_1() -> None:
    embedding = _embedding(0).double()
    read = embedding @ Whitened(embedding).whitening
    torch.testing.assert_close(read.T @ read / TOKENS, torch.eye(HIDDEN).double())


def test_directions_that_an_embedding_lacks_stay_finite() -> None:
    embedding = _embedding(1)
    embedding[:, 0] = 0
    whitened = Whitened(embedding)
    projection = torch.randn(3, HIDDEN)
    back = whitened.right_inverse(whitened(projection))
    torch.testing.assert_close(back, projection, rtol=1e-3, atol=1e-3)
    most = (FLOOR * embedding.square().sum() / embedding.numel()) ** -0.5
    assert torch.linalg.matrix_norm(whitened.whitening, 2) <= 1.001 * most


def test_it_changes_no_score_and_no_weight_by_itself() -> None:
    model, embedding = _probe(2), _embedding(2)
    names, states = list(model.state_dict()), torch.randn(5, 2, HIDDEN)
    with torch.no_grad():
        before = model.every(states, model.table(embedding))
        whiten(model.tokens, embedding)
        during = model.every(states, model.table(embedding))
        restore(model.tokens)
    torch.testing.assert_close(during, before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        model.every(states, model.table(embedding)), before, rtol=1e-4, atol=1e-4
    )
    assert list(model.state_dict()) == names


def test_training_is_that_of_a_projection_of_whitened_embeddings() -> None:
    """The reference is an ordinary probe that reads W·e_v, at every step."""
    model, reference, embedding = _probe(3), _probe(3), _embedding(3)
    white = Whitened(embedding)
    with torch.no_grad():
        reference.tokens.weight.copy_(white.right_inverse(reference.tokens.weight))
    whiten(model.tokens, embedding)
    states, tokens = torch.randn(30, 2, HIDDEN), torch.randint(TOKENS, (30,))
    targets = torch.randn(30)
    for one, read in ((model, embedding), (reference, embedding @ white.whitening)):
        optimizer = torch.optim.AdamW(one.parameters(), lr=0.01, weight_decay=1.0)
        for _ in range(20):
            optimizer.zero_grad()
            (one(states, one.table(read)[tokens])[:, 0] - targets).square().mean().backward()
            optimizer.step()
    restore(model.tokens)
    torch.testing.assert_close(
        model.tokens.weight, white(reference.tokens.weight), rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(model.factors.weight, reference.factors.weight, rtol=1e-3, atol=1e-3)
    plain = _probe(3).tokens.weight
    assert not torch.allclose(model.tokens.weight, plain, rtol=1e-2, atol=1e-2)


def test_a_new_probe_projects_whitened_embeddings_at_random() -> None:
    torch.manual_seed(4)
    model, embedding = probe.new(demo.base(), rank=16), probe.embedding(demo.base())
    with torch.no_grad():
        tables = model.tokens(embedding), Probe(model.config).tokens(embedding)  # [vocab, rank]
    spread, plain = (torch.linalg.svdvals(table).square() for table in tables)
    assert spread[0] < 8 * spread[-1], "no direction has most of the variance"
    assert plain[0] > 12 * plain[-1], "as one has without whitening"
    torch.testing.assert_close(tables[0].square().mean(), torch.tensor(1.0), rtol=0.1, atol=0)
