"""A quick training in the tiny world, to see whether objectives find their limits."""

from collections.abc import Callable
from typing import Any

import torch
from conftest import running
from torch import Tensor

from trimtab_lab.worlds.tiny import PROMPTS, VOCABULARY, Tiny, config
from trimtab_models import networks
from trimtab_models.objectives import Objective
from trimtab_models.rows import Rows


def fit(world: Tiny, objective: Objective, *, rate: float = 0.1, **options: Any) -> Tensor:
    """What an objective makes of a scorer without limits: a free number for every state and output.

    Returns:
        [states, width] float64. `options` as in `_descend`.
    """
    widths = {"scalar": 1, "scalars": 2, "vocabulary+value": VOCABULARY + 1}
    width = getattr(objective, "bins", widths.get(objective.head, VOCABULARY))
    if objective.head == "distributions":
        width = VOCABULARY * (width + 1)
    table = torch.zeros(len(world.states), width, requires_grad=True)
    number = {state: i for i, state in enumerate(world.states)}
    at = torch.zeros_like(world.rows.input_ids)  # [finals, length] the state at every position
    for row, (x, y) in enumerate(world.finals):
        for t in range(len(y) + 1):
            at[row, len(x) + t - 1] = number[x, y[:t]]
    _descend(world, objective, [table], lambda: table[at], rate=rate, **options)
    return table.detach().double()


def train(world: Tiny, objective: Objective, *, rate: float = 5e-3, **options: Any) -> Any:
    """A small Llama trained on an objective; see `_descend` for the options."""
    with torch.random.fork_rng():
        torch.manual_seed(options.get("seed", 0))
        bins = getattr(objective, "bins", 1)
        model = networks.build(objective.head, config(), bins=bins).train()
    parameters = list(model.parameters())
    _descend(world, objective, parameters, lambda: _forward(world, model), rate=rate, **options)
    return model.eval()


def _descend(
    world: Tiny,
    objective: Objective,
    parameters: list[Tensor],
    forward: Callable[[], Tensor],
    *,
    rate: float,
    steps: int = 400,
    items: int = 1024,
    seed: int = 0,
    **judge: Any,
) -> None:
    assert running.slow, "mark this test: pytest.mark.slow"
    # Every sequence there is goes through the scorer once a step; samples, fresh at each step, are
    # picked from its outputs, so that a large batch costs no more than a small one.
    optimiser = torch.optim.Adam(parameters, rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    draws = torch.Generator().manual_seed(seed)
    base = world.log_pi0.float() if objective.reads_base else None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(steps):
            at = world.draw(objective.data, items, draws, **judge)
            groups = torch.arange(items).repeat_interleave(len(at) // items)
            rows = Rows(*(part[at] for part in world.rows[:-1]), groups)
            loss = objective.loss(forward()[at], rows, None if base is None else base[at])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


def _forward(world: Tiny, model: Any) -> Tensor:
    logits: Tensor = model(
        input_ids=world.rows.input_ids, attention_mask=world.rows.attention_mask
    ).logits
    return logits


def outputs(world: Tiny, model: Any) -> Tensor:
    """What a network says of every state: [states, width] float64."""
    with torch.inference_mode():
        return world.at(_forward(world, model)).double().clone()


def distance(world: Tiny, learnt: Tensor, exact: Tensor, where: Tensor) -> float:
    """Root mean square error over some states, each weighted by how often the base comes there.

    Args:
        learnt, exact: [states].
        where: [states] bool.
    """
    weights = world.table(world.reach) * where
    return float(((learnt - exact)[where].square() @ weights[where] / weights.sum()).sqrt())


def centred(world: Tiny, values: Tensor, where: Tensor) -> Tensor:
    """Values less their mean over each prompt's chosen states, weighted as in `distance`."""
    weights = world.table(world.reach) * where
    values = values.clone()
    for prompt in PROMPTS:
        mine = world.where(lambda x, y, prompt=prompt: x == prompt)
        part = where & mine
        values[mine] -= values[part] @ weights[part] / weights[part].sum()
    return values
