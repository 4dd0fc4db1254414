"""Training a probe: its outputs for every objective, and the fold of Q's parts into one output.

An objective reads a network's output at every position of a row. A probe scores a token y_t from
the states before it, so its output for y_t is put

    at y_t, as a head's that has read y_t                 head scalar(s), distribution(s)
    before y_t, as a vocabulary head's, for every token   head vocabulary, vocabulary+value

and the objectives stay as they are. As a probe has a histogram for every next token anyway, the
head `distributions` is the same as `distribution` here. A probe for `vocabulary+value` has two
outputs while it trains: A of every token and, by its level A(u) alone, V. One for `scalars` has two
as well, of which the second, what was gained before the token, is a level alone: as a state tells
it only roughly, tokens that often follow gains would else seem to bring them. The two are added up
at the end. The head `language` is a whole language model's, so its objectives cannot train a probe.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from trimtab_models import probe
from trimtab_models.features import States
from trimtab_models.networks import Head
from trimtab_models.objectives import Objective
from trimtab_models.probe import Probe
from trimtab_models.rows import Rows

DEFAULTS: dict[str, Any] = {"weight_decay": 1.0, "warmup_steps": 0.1}
"""TrainingArguments of a probe, where they differ; docs/training.md has what was measured."""


def can_train(objective: Objective) -> bool:
    """Whether an objective can train a probe."""
    return objective.head != "language"


def width(objective: Objective) -> int:
    """Number of outputs of the probe that an objective trains."""
    if objective.head in ("scalars", "vocabulary+value"):
        return 2
    return getattr(objective, "bins", 1)


def reader(head: Head, states: States) -> Callable[[Any, Rows, Tensor], Tensor]:
    """A function that returns a probe's outputs where an objective reads them; see the module.

    (probe, rows, the base's states [rows, steps, hidden]) → [rows, length, width]

    Raises, when called:
        ValueError: the probe is trained by several processes.
    """

    def outputs(network: Any, rows: Rows, read: Tensor) -> Tensor:
        if isinstance(network, DistributedDataParallel):
            raise ValueError("a probe is trained in one process, as it takes seconds.")
        model: Probe = getattr(network, "module", network)  # of several GPUs in one process
        both = probe.running(read)  # [rows, steps, 2, hidden]
        level, factors = model.parts(both)
        if not head.startswith("vocabulary"):
            chosen = model.table(states.embedding()[rows.tokens().cpu()].to(read.device))
            by_token = (factors @ chosen[..., None])[..., 0]  # [rows, steps, width]
            if head == "scalars":
                by_token = torch.cat((by_token[..., :1], torch.zeros_like(by_token[..., 1:])), -1)
            return _placed(level + by_token, rows, rows.prompts)
        every = level[..., :1] + factors[..., 0, :] @ model.table(states.embedding(read.device)).mT
        # V is the second output's level: [rows, steps, vocab (+ 1)]
        return _placed(torch.cat((every, level[..., 1:]), -1), rows, rows.prompts - 1)

    return outputs


def _placed(values: Tensor, rows: Rows, starts: Tensor) -> Tensor:
    """Values of the answers' tokens at their places in the rows, 0 elsewhere.

    values: [rows, steps, width]. starts: [rows] place of the first. → [rows, length, width]
    """
    mask = rows.mask()
    numbers, steps = mask.nonzero(as_tuple=True)
    outputs = values.new_zeros(*rows.input_ids.shape, values.shape[-1])
    outputs[numbers, starts[numbers] + steps] = values[mask]
    return outputs


@torch.no_grad()
def add_up(model: Probe) -> Probe:
    """The probe of one output, the sum of the outputs of another one."""
    added = _one_output(model)
    outputs = model.config.outputs
    for name in ("weight", "bias"):
        for part in ("level", "factors"):
            whole = getattr(getattr(model, part), name).unflatten(0, (outputs, -1)).sum(0)
            getattr(getattr(added, part), name).copy_(whole)
    return added.eval()


def _one_output(model: Probe) -> Probe:
    """A probe of one output with the hidden layer and the table of another one."""
    config = copy.deepcopy(model.config)
    config.outputs = 1
    made = Probe(config).to(model.device)
    made.trunk.load_state_dict(model.trunk.state_dict())
    made.tokens.load_state_dict(model.tokens.state_dict())
    return made


@torch.no_grad()
def fold(model: Probe, objective: Objective, states: States) -> Probe:
    """The probe of one output, Q, from one of two outputs, A and V.

    With `combine` of an objective, which adds to A only what is the same for all tokens, linear in
    A and V: combine([a + T·b, V]) = T·b + c_a·a + c_V·V + c·b, for a table T of all tokens.
    """
    table = model.table(states.embedding(model.device)).mT  # [rank, vocab]
    basis = torch.zeros(len(table) + 2, table.shape[1] + 1, device=table.device)
    basis[0, :-1], basis[1:-1, :-1], basis[-1, -1] = 1, table, 1
    mapped = objective.combine(basis)  # [rank + 2, vocab]
    mapped[1:-1] -= table
    shares = mapped.mean(-1)  # each row is the same for all tokens
    folded = _one_output(model)
    for name in ("weight", "bias"):
        level, factors = getattr(model.level, name), getattr(model.factors, name)[: len(table)]
        getattr(folded.factors, name).copy_(factors)
        whole = shares[0] * level[0] + shares[-1] * level[1]
        whole = whole + torch.tensordot(shares[1:-1], factors, 1)
        getattr(folded.level, name).copy_(whole[None])
    return folded.eval()
