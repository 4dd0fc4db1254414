"""The score of every prefix of a completion, for every family of scorers.

head          s(x, y^{1:t}) = link(w·h_t + b), or the mean over the heads of an ensemble
distribution  Σ_b p_b·R_b, or at a strength c the soft value (1/c)·log Σ_b p_b·exp(c·R_b),
              where p is the softmax of the head's output after y_t, or of y_t's own rows in the
              output before y_t (info.ahead), and R is spaced evenly over the support
vocabulary    Q(x, y^{1:t−1})[y_t]; their sum up to t if info.adds_up, as for advantages
log_ratio     α·Σ_{i≤t} (log π_r(y_i | x, y^{1:i−1}) − log π_ref(y_i | x, y^{1:i−1})), the implicit
              reward of a language model; without a reference model the second term is absent
probe         as head or distribution (with a support), from the base's states before y_t
text          link(classifier(text of x and y^{1:t})): one forward of a text for every t; so is head
              with its own tokenizer, w·h + b at the last token of that text (texts.py)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from trimtab_models import probe
from trimtab_models.checkpoint import ScorerInfo
from trimtab_models.classify import Classifier, Inputs
from trimtab_models.features import States
from trimtab_models.networks import next_histograms, split
from trimtab_models.readout import LINKS, soft_value
from trimtab_models.rows import Rollout, Rows, pad, padded
from trimtab_models.texts import Texts


def prefix_scores(
    model: Any,
    info: ScorerInfo,
    rollouts: Sequence[Rollout],
    pad_id: int,
    *,
    reference: Any = None,
    states: States | None = None,
    texts: Texts | None = None,
    strength: float = 0.0,
    batch_size: int = 64,
    progress: bool = False,
) -> list[Tensor]:
    """The scores s(x, y^{1:t}), t = 1 .. T, of every completion.

    Args:
        model: the scorer network; runs in evaluation mode on its own device.
        info: how its outputs become scores.
        rollouts: prompts and completions; labels are ignored.
        pad_id: any token; it is masked.
        reference: the reference model of a log-ratio scorer.
        states: of the probe's base; states that it lacks are computed.
        texts: how a scorer with its own tokenizer reads prefixes.
        strength: c of a distribution scorer; 0 is the mean.
        batch_size: completions in a forward, or texts. A vocabulary head outputs
            batch_size · length · vocabulary numbers each time.
        progress: show a progress bar.

    Returns:
        One float32 tensor [T] on the host for each rollout, in their order.

    Raises:
        ValueError: an empty prompt or completion, a distribution scorer without a support, a probe
            without states, or with those of another base, or a scorer of texts without `texts`.
    """
    if texts is not None:
        parts = [[one.completion[: t + 1] for t in range(len(one.completion))] for one in rollouts]
        inputs = [texts.inputs(one.prompt, some) for one, some in zip(rollouts, parts, strict=True)]
        flat = text_scores(model, info, texts, [one for some in inputs for one in some], batch_size)
        return list(flat.split([len(some) for some in inputs]))
    if info.reads is not None:
        raise ValueError("this scorer reads texts with its own tokenizer; pass `texts`.")
    if info.family == "probe":
        states = _of_base(model, states)
        states.add(rollouts)
    order = sorted(range(len(rollouts)), key=lambda i: -sum(map(len, rollouts[i][:2])))
    scores: list[Tensor] = [torch.empty(0)] * len(rollouts)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    with torch.inference_mode(), _evaluating(model), _evaluating(reference):
        for batch in tqdm(batches, desc="scores", unit="batch", disable=not progress):
            rows = pad([rollouts[i] for i in batch], pad_id)
            rows = Rows(*(part.to(model.device) for part in rows))
            if info.family == "log_ratio":
                scored = _log_likelihood(model, rows)
                if reference is not None:
                    scored = scored - _log_likelihood(reference, rows)
                scored = info.alpha * scored
            elif states is not None and info.family == "probe":
                read = states.batch([rollouts[i] for i in batch]).to(model.device)
                scored = _probed(model, info, rows, read, states, strength)
            else:
                scored = _read(model, info, rows, strength)
            for i, row, length in zip(batch, scored.cpu(), rows.completions.tolist(), strict=True):
                scores[i] = row[:length].clone()
    return scores


def text_scores(
    model: Any, info: ScorerInfo, texts: Texts, inputs: Sequence[Inputs], batch_size: int = 64
) -> Tensor:
    """The score of each text, [texts] float32 on the host.

    Args:
        model, info: the scorer; its weights lose their gradients.
        texts: how it reads.
        inputs: from `texts.inputs`.
        batch_size: texts in a forward of a causal network; a classifier sets its own.
    """
    if not texts.causal:
        outputs = Classifier(model, texts.tokenizer).score(inputs)
        return LINKS[info.link](outputs)
    order = sorted(range(len(inputs)), key=lambda i: -len(inputs[i]["input_ids"]))
    scores = torch.empty(len(inputs))
    with torch.inference_mode(), _evaluating(model):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids, mask = padded([inputs[i]["input_ids"] for i in batch], 0)
            outputs = _outputs(model, ids.to(model.device), mask.to(model.device))  # [texts, …, 1]
            last = outputs[torch.arange(len(batch)), mask.sum(-1) - 1, 0]
            scores[batch] = LINKS[info.link](last.float()).cpu()
    return scores


def _read(model: Any, info: ScorerInfo, rows: Rows, strength: float) -> Tensor:
    """Scores [rows, steps] of the families with values."""
    outputs = _outputs(model, rows.input_ids, rows.attention_mask)  # [rows, length, width]
    if info.family == "vocabulary":
        chosen = rows.chosen(outputs).float()
        return chosen.cumsum(-1) if info.adds_up else chosen
    if info.ahead:
        vocab = model.get_input_embeddings().num_embeddings
        states = rows.chosen(next_histograms(outputs, vocab)).float()  # [rows, steps, bins]
    else:
        states = rows.gather(outputs).float()  # [rows, steps, width]
    if info.family == "distribution":
        return expected(states, info.support, strength)
    return LINKS[info.link](states[..., : info.heads]).mean(-1)  # of an ensemble's heads


def _of_base(model: Any, states: States | None) -> States:
    """The states, if they are those that a probe reads."""
    if states is None:
        raise ValueError("a probe reads the states of its base; pass `states`.")
    probe.check_base(model, "this probe", states.base)
    return states


def _probed(
    model: Any, info: ScorerInfo, rows: Rows, read: Tensor, states: States, strength: float
) -> Tensor:
    """Scores [rows, steps] of a probe. read: [rows, steps, hidden], the base's states."""
    table = model.table(states.embedding(read.device))  # [vocab, rank]
    values = model(probe.running(read), table[rows.tokens()]).float()  # [rows, steps, outputs]
    if info.support is not None:
        return expected(values, info.support, strength)
    scores = LINKS[info.link](values[..., 0])
    return scores.cumsum(-1) if info.adds_up else scores


def expected(logits: Tensor, support: tuple[float, float] | None, strength: float = 0.0) -> Tensor:
    """The (soft) value of a histogram over returns.

    Args:
        logits: [..., bins] float32, before the softmax.
        support: the returns of the first and the last bin.
        strength: c, in 1 / reward; 0 gives the mean.

    Returns:
        [...] (1/c)·log Σ_b p_b·exp(c·R_b), which tends to Σ_b p_b·R_b as c → 0.
    """
    if support is None:
        raise ValueError(
            'a distribution scorer needs the "support" of its bins in config.json\'s "trimtab": '
            "the lowest and the highest return, such as [0, 1]."
        )
    returns = torch.linspace(*support, logits.shape[-1], device=logits.device)  # [bins]
    return soft_value(logits, returns, torch.tensor(strength, device=logits.device))


def _log_likelihood(model: Any, rows: Rows) -> Tensor:
    """log π(y^{1:t} | x) for every t: [rows, steps] float32."""
    logits = _outputs(model, rows.input_ids, rows.attention_mask)
    normalizer = rows.before(logits.float().logsumexp(-1))
    return (rows.chosen(logits).float() - normalizer).cumsum(-1)


def _outputs(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The network's output at every position, [rows, length, width]."""
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not type(bare).__name__.endswith("ForSequenceClassification"):
        return model(**inputs).logits
    backbone, head = split(bare)  # its own forward returns only one position of each row
    return head(backbone(**inputs).last_hidden_state)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = getattr(model, "training", False)
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
