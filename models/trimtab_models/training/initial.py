"""The initial network of a run: with fewer layers and with adapters, if requested."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from trimtab_models import bases, networks, pretrained, probe
from trimtab_models.checkpoint import ScorerInfo, read_info
from trimtab_models.features import States
from trimtab_models.objectives import OBJECTIVES, Objective
from trimtab_models.rows import Rollout, remaining
from trimtab_models.training import probes
from trimtab_models.training.config import Lora, ProbeSizes, TrainConfig, checked
from trimtab_models.training.grounded.settings import GroundedConfig


def base_path(config: TrainConfig | GroundedConfig) -> str:
    """The directory or hub name of the base language model."""
    return bases.base_path(config.base)


def with_probe(config: TrainConfig) -> TrainConfig:
    """The configuration with the sizes of the probe that it continues, if `scorer` is a probe.

    Raises:
        ValueError: a probe of other sizes is configured, or `scorer` is no probe though one is
            configured, or a setting does not go with a probe.
    """
    if config.scorer is None:
        return config
    try:
        known = pretrained.configuration(config.scorer)
    except (OSError, ValueError):
        return config  # it is refused where it is loaded, after the place of the result
    if not isinstance(known, probe.ProbeConfig):
        if config.probe is not None:
            raise ValueError(
                f"scorer: {config.scorer} is no probe, and a probe has no other network; leave out "
                "scorer to begin with a new probe."
            )
        return config
    fields = config.model_dump(include=config.model_fields_set)
    sent = config.probe.model_dump(include=config.probe.model_fields_set) if config.probe else {}
    sizes = {name: getattr(known, name) for name in ProbeSizes.model_fields}
    for name in ("rank", "width"):
        if sent.get(name, sizes[name]) != sizes[name]:
            raise ValueError(
                f"probe.{name}: {config.scorer} has {sizes[name]}, not {sent[name]}; leave out "
                f"probe.{name} to continue it."
            )
    return checked(TrainConfig, {**fields, "probe": {**sizes, **sent}})


def refuse_small(config: TrainConfig, tokenizer: Any) -> None:
    """Make sure that the initial network has a row for each token of the base.

    Raises:
        ValueError: it has fewer rows.
    """
    if config.scorer is None:
        return
    known = pretrained.configuration(config.scorer)  # before the states of the base are computed
    if config.probe is not None:
        return
    rows = known.get_text_config().vocab_size
    if rows < len(tokenizer):
        raise ValueError(
            f"scorer: {config.scorer} has {rows} tokens and the base {len(tokenizer)}; choose a "
            "network with the base's tokenizer."
        )


def reads(config: TrainConfig | GroundedConfig, *, texts: bool = False) -> int | None:
    """The maximum tokens that both the base and the initial network read; None if unknown.

    texts: whether the initial network reads texts, which it cuts itself.
    """
    paths = {base_path(config)}
    if config.scorer and not texts and not (isinstance(config, TrainConfig) and config.probe):
        paths.add(config.scorer)  # a probe reads what the base reads
    lengths = [networks.longest(pretrained.configuration(path)) for path in paths]
    return min((n for n in lengths if n is not None), default=None)


def objective(config: TrainConfig) -> Objective:
    """The objective with the options of the configuration.

    Raises:
        ValueError: the objective has no such options.
    """
    name = config.objective
    if config.probe is not None and name == "q-distribution":
        name = "distribution"  # a probe has a histogram for every next token anyway
    try:
        return OBJECTIVES[name](**config.options)
    except TypeError as error:
        raise ValueError(f"options of {config.objective}: {error}") from None


def with_support(config: TrainConfig, items: Sequence[Any]) -> TrainConfig:
    """The configuration with defaults for the support and bins of a return distribution.

    These are the initial scorer's, else the range of the rewards; with only two different rewards
    there are two bins.

    Raises:
        ValueError: all rewards are equal.
    """
    if "distribution" not in config.objective or "support" in config.options:
        return config
    info = read_info(config.scorer) if config.scorer else None
    if config.scorer and info and info.support:
        network = pretrained.configuration(config.scorer)
        bins = _bins(network, info)
        defaults = {"support": list(info.support), "bins": bins}
    else:
        rewards = {r for item in items if isinstance(item, Rollout) for r in remaining(item)}
        if len(rewards) < 2:
            raise ValueError("the data: all rewards are equal, so there is nothing to learn.")
        defaults = {"support": [min(rewards), max(rewards)]}
        defaults |= {"bins": 2} if len(rewards) == 2 else {}
    return config.model_copy(update={"options": defaults | config.options})


def _bins(network: Any, info: ScorerInfo) -> int:
    """The number of bins of a scorer with return distributions, from its configuration."""
    if info.family == "probe":
        return int(network.outputs)
    return int(network.num_labels // network.vocab_size - 1 if info.ahead else network.num_labels)


def network(config: TrainConfig, loss: Objective) -> Any:
    """The network that an objective trains, in float32, with LoRA adapters if configured.

    With `probe` it is a probe of the base's states.

    Raises:
        ValueError: its adapters cannot be written without merging (lora.merge false).
    """
    if config.probe is not None:
        outputs, sizes = probes.width(loss), config.probe.model_dump()
        if config.scorer is not None:
            dropout = sizes["dropout"]
            return probe.continued(
                config.scorer, base_path(config), outputs=outputs, dropout=dropout
            )
        return probe.new(base_path(config), outputs=outputs, **sizes)
    source = config.scorer or base_path(config)
    bins: int = getattr(loss, "bins", 1)
    if config.scorer and networks.is_encoder(pretrained.configuration(source)):
        model = networks.classifier(source, dtype=torch.float32)
    else:
        heads = config.ensemble or bins
        model = networks.build(loss.head, source, bins=heads, dtype=torch.float32)
    model = keep_layers(model, config.layers)
    if config.lora is None:
        return model
    if loss.head in ("scalars", "vocabulary+value") and not config.lora.merge:
        raise ValueError(
            f"lora.merge: {config.objective} is folded into a plain head at the end, which an "
            "adapter cannot store; set lora.merge to true."
        )
    import peft

    return peft.get_peft_model(model, lora_config(model, config))


def language_model(config: TrainConfig) -> Any:
    """The language model that DPO tunes, in float32."""
    return networks.build("language", config.scorer or base_path(config), dtype=torch.float32)


def keep_layers(model: Any, n: int | None) -> Any:
    """The network with its n lowest layers, changed in place; all layers if n is None."""
    total = model.config.num_hidden_layers
    if n is None or n == total:
        return model
    if n > total:
        raise ValueError(f"layers: the network has {total}, not {n}.")
    for module in list(model.base_model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == total:
                setattr(module, name, child[:n])
    model.config.num_hidden_layers = n
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:n]
    return model


def lora_config(model: Any, config: TrainConfig) -> Any:
    """PEFT's configuration for a network; None without LoRA."""
    lora = config.lora
    if lora is None:
        return None
    if config.layers is not None and not lora.merge:
        raise ValueError(
            "lora.merge: an adapter needs the whole base network; with `layers` set it to true."
        )
    import peft

    head = _new_head(model)
    return peft.LoraConfig(
        task_type=_task(model),
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        exclude_modules=_inner(model, head),
        modules_to_save=head,
    )


def _task(model: Any) -> str:
    name = type(model).__name__
    if name.endswith("ForTokenClassification"):
        return "TOKEN_CLS"
    return "SEQ_CLS" if name.endswith("ForSequenceClassification") else "CAUSAL_LM"


def _new_head(model: Any) -> list[str] | None:
    """Names of a head, which is trained in full; None for a language model's own head.

    Of an encoder, the pooler is a part of the head.
    """
    if _task(model) == "SEQ_CLS" and networks.is_encoder(model.config):
        pooler = f"{model.base_model_prefix}.pooler"
        names = networks.outer_weights(model)
        tops = (pooler if n.startswith(pooler) else n.partition(".")[0] for n in names)
        return list(dict.fromkeys(tops))
    head: Any = networks.split(model)[1]
    if _task(model) == "CAUSAL_LM" and head.weight.any():
        return None
    return [name for name, module in model.named_modules() if module is head]


def _inner(model: Any, names: list[str] | None) -> list[str] | None:
    """Names of the layers of some modules, which adapters must leave alone."""
    if names is None:
        return None
    return [
        f"{name}.{inner}".rstrip(".")
        for name in names
        for inner, _ in model.get_submodule(name).named_modules()
    ]


def finish(
    model: Any, loss: Objective | None, lora: Lora | None, states: States | None = None
) -> Any:
    """The trained network ready to be written: adapters merged if set, its outputs made one score.

    states: of a probe's base.
    """
    if lora is not None and lora.merge:
        model = model.merge_and_unload()
    if loss is not None and loss.head == "scalars":
        model = networks.add_up(model) if states is None else probes.add_up(model)
    if loss is not None and loss.head == "vocabulary+value":
        if states is not None:
            return probes.fold(model, loss, states)
        model = networks.fold(model, loss.combine)
    return model.eval()
