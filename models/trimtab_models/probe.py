"""A probe: a small value head on the base's own states, for every next token at once.

    outputs(x, v)[b] = A(u)[b] + ⟨B(u)[b], P·e_v⟩ / √r,   u = MLP(h(x), m(x))

h(x) is the state that the base computes for its logits at the prefix x, and m(x) the mean of these
states over the answer so far, from the prompt's last token on: the last state forgets what the
answer has said. e_v is the base's frozen output embedding, P: hidden → r. With several outputs they
are the logits of a histogram over returns. The vocabulary may have any size, as its part is of low
rank; the whole of it is scored by one product.

Both states are normalised (to mean 0 and variance 1), and e_v is divided by the root of the mean
square of the whole embedding.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from trimtab_models import base_weights, pretrained
from trimtab_models.files import Unusable
from trimtab_models.whitening import Whitened


class ProbeConfig(PretrainedConfig):
    """Sizes of a probe, and the base that it reads."""

    model_type = "trimtab_probe"

    def __init__(
        self,
        hidden_size: int = 1,
        rank: int = 16,
        width: int = 64,
        outputs: int = 1,
        dropout: float = 0.0,
        base: str = "",
        **rest: Any,
    ) -> None:
        """hidden_size: of the base's states. rank: r. width: of the MLP. base: its fingerprint."""
        super().__init__(**rest)
        self.hidden_size = hidden_size
        self.rank = rank
        self.width = width
        self.outputs = outputs
        self.dropout = dropout
        self.base = base


class Probe(PreTrainedModel):
    """The network, see the module. `table` fills in the base's embedding."""

    config_class = ProbeConfig
    base_model_prefix = "probe"

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__(config)
        self.trunk = nn.Sequential(
            nn.Linear(2 * config.hidden_size, config.width),
            nn.SiLU(),
            nn.Dropout(config.dropout),
        )
        self.level = nn.Linear(config.width, config.outputs)  # A
        self.factors = nn.Linear(config.width, config.outputs * config.rank)  # B
        self.tokens = nn.Linear(config.hidden_size, config.rank, bias=False)  # P
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Start from outputs of 0: a probe that knows nothing does not steer."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        for part in ("level", "factors"):
            if module is getattr(self, part, None):
                nn.init.zeros_(module.weight)

    def table(self, embedding: Tensor) -> Tensor:
        """P·e_v/√r of tokens: [tokens, hidden], scaled by `scaled` → [tokens, rank]."""
        projected: Tensor = self.tokens(embedding)
        return projected / math.sqrt(self.config.rank)

    def forward(self, states: Tensor, table: Tensor) -> Tensor:
        """The outputs for one token after each prefix.

        states: [..., 2, hidden], h and m. table: [..., rank], of the token. → [..., outputs]
        """
        level, factors = self.parts(states)
        return level + (factors @ table[..., None])[..., 0]

    def every(self, states: Tensor, table: Tensor) -> Tensor:
        """The same for every token: [..., 2, hidden], [vocab, rank] → [..., vocab, outputs].

        In memory, each output's vocabulary is contiguous.
        """
        level, factors = self.parts(states)
        return (level[..., None] + factors @ table.mT).mT

    def parts(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """A(u), [..., outputs], and B(u), [..., outputs, rank]."""
        states = layer_norm(states.to(self.level.weight.dtype), states.shape[-1:])
        hidden = self.trunk(states.flatten(-2))
        factors = self.factors(hidden).unflatten(-1, (self.config.outputs, self.config.rank))
        return self.level(hidden), factors


CONFIG_MAPPING.register(ProbeConfig.model_type, ProbeConfig)
AutoModel.register(ProbeConfig, Probe)


def new(
    base: str | Path, *, outputs: int = 1, rank: int = 16, width: int = 64, dropout: float = 0.0
) -> Probe:
    """An untrained probe of a base.

    Raises:
        FileNotFoundError, Unusable: the base cannot be read.
    """
    config = ProbeConfig(
        hidden_size=pretrained.configuration(base).get_text_config().hidden_size,
        rank=rank,
        width=width,
        outputs=outputs,
        dropout=dropout,
        base=base_weights.fingerprint(base),
    )
    config.architectures = [Probe.__name__]
    model = Probe(config).eval()
    with torch.no_grad():  # P' is random, rather than P: see whitening.py
        model.tokens.weight.copy_(Whitened(embedding(base))(model.tokens.weight))
    return model


def continued(source: str | Path, base: str | Path, *, outputs: int, dropout: float) -> Probe:
    """The probe of a checkpoint, to be trained further.

    If its number of outputs differs, `level` and `factors` start from 0, as in a new probe.

    Raises:
        FileNotFoundError, Unusable: it cannot be read, or it reads another base.
    """
    config = pretrained.configuration(source)
    new = ("level", "factors") if config.outputs != outputs else ()
    config.outputs, config.dropout = outputs, dropout
    model: Probe = load(source, config=config, new=new)
    for name in new:
        for parameter in getattr(model, name).parameters():
            nn.init.zeros_(parameter)
    check_base(model, source, base)
    return model


def load(source: str | Path, **options: Any) -> Any:
    """The probe of a checkpoint; raises as `pretrained.network`."""
    return pretrained.network(AutoModel, source, **options)


def check_base(probe: Probe, source: str | Path, base: str | Path) -> None:
    """Check that a probe reads this base.

    Raises:
        Unusable: it was trained on another one.
    """
    if probe.config.base != base_weights.fingerprint(base):
        raise Unusable(
            f"{source} reads the states of another base; a probe works with the base that it was "
            "trained on, and its weights differ from this one's"
        )


def embedding(base: str | Path) -> Tensor:
    """The base's output embedding over the root of its mean square, [vocab, hidden] float32.

    Raises:
        FileNotFoundError, Unusable: the base cannot be read.
    """
    weight = base_weights.output_embedding(base)
    return weight / weight.square().mean().sqrt()


def running(states: Tensor) -> Tensor:
    """h and m at each step of answers, from their states in order.

    [..., steps, hidden] → [..., steps, 2, hidden]
    """
    counts = torch.arange(1, states.shape[-2] + 1, device=states.device)[:, None]
    means = states.float().cumsum(-2) / counts
    return torch.stack((states.float(), means), -2)
