"""Whether the initial network of a run reads texts, how, and which objectives it can learn."""

from typing import Any

from trimtab_models import networks, pretrained, texts
from trimtab_models.checkpoint import read_info
from trimtab_models.objectives import OBJECTIVES, Objective
from trimtab_models.texts import Texts
from trimtab_models.training.config import TextRows, TrainConfig
from trimtab_models.training.texts.rows import can_draw, reads_whole


def texts_of(config: TrainConfig, objective: Objective | None, decoder: Any) -> Texts | None:
    """How the initial network reads texts; None if it reads the base's tokens from left to right.

    Args:
        config: of the run.
        objective: of the run; None for DPO.
        decoder: the base's tokenizer.

    Raises:
        ValueError: the objective or a setting does not go with a scorer of texts, or `texts` is set
            for another scorer.
        OSError: the checkpoint of the initial network cannot be read.
    """
    if config.scorer is None or config.probe is not None:
        return None
    network = pretrained.configuration(config.scorer)
    encoder, own = networks.is_encoder(network), _own_tokenizer(config.scorer, decoder)
    if not encoder and own is None:
        if config.texts is not None:
            raise ValueError(
                f"texts: {config.scorer} is causal and has the base's tokenizer, so one forward "
                "scores all prefixes; leave this out."
            )
        return None
    why = "reads a text in both directions" if encoder else "has its own tokenizer"
    if objective is None or not can_draw(objective):
        raise ValueError(
            f"{config.objective} needs the scores of all prefixes from one pass over the base's "
            f"tokens, and {config.scorer} {why}; choose {', '.join(_trainable())}, or a causal "
            "network with the base's tokenizer."
        )
    if config.ensemble is not None:
        raise ValueError(f"ensemble: {config.scorer} {why} and has one head; leave this out.")
    if getattr(objective, "ratio", None) not in (None, 1):
        raise ValueError(
            f"options.ratio is for one pass over the base's tokens, and {config.scorer} {why}; set "
            "texts.rows instead."
        )
    if config.texts is not None and "rows" in config.texts.model_fields_set:
        _check_rows(config.objective, objective)
    if own is None:
        own = decoder
    reads = (config.texts and config.texts.reads) or read_info(config.scorer).reads or "text"
    if not encoder and reads != "text":
        raise ValueError(
            f"texts.reads: {config.scorer} is causal and reads prompt and answer as one text; set "
            "it to text."
        )
    return texts.of(network, own, decoder, reads)


def _check_rows(name: str, objective: Objective) -> None:
    """Refuse `texts.rows` where it would be ignored."""
    if reads_whole(objective):
        raise ValueError(f"texts.rows: {name} reads each pair once, whole; leave it out.")
    if getattr(objective, "rows_per_pair", None) is not None:
        raise ValueError("texts.rows: options.rows_per_pair says the same; leave one of them out.")


def rows_of(config: TrainConfig, objective: Objective) -> float:
    """The mean number of drawn prefixes of an item."""
    own: float | None = getattr(objective, "rows_per_pair", None)
    return own or (config.texts or TextRows()).rows


def _trainable() -> list[str]:
    return [name for name, make in OBJECTIVES.items() if can_draw(make())]


def _own_tokenizer(source: str, decoder: Any) -> Any:
    """The tokenizer of a network; None if it has none, or has the base's.

    The base's may have added tokens of its own, such as a padding token.
    """
    try:
        own = pretrained.tokenizer(source, truncation_side="left")
    except FileNotFoundError:
        return None
    added = decoder.get_added_vocab()
    plain = {token: number for token, number in decoder.get_vocab().items() if token not in added}
    return None if plain.items() <= own.get_vocab().items() else own
