"""Validate an existing checkpoint and write the report into it."""

import argparse
import sys
from collections.abc import Sequence

import torch

from trimtab_models import checkpoint, data, demo, networks, pretrained, texts
from trimtab_models.features import States
from trimtab_models.files import beside
from trimtab_models.report import summary, update, validate, warning
from trimtab_models.report.files import check


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m trimtab_models.report",
        description="Validate a scorer on held-out rollouts and write report.md into it.",
    )
    parser.add_argument("checkpoint", help="directory of the scorer")
    parser.add_argument("--rollouts", required=True, help="completions with their rewards")
    parser.add_argument("--completions", help="half-completed answers with their returns")
    parser.add_argument(
        "--base",
        help="the base, if the checkpoint does not name it: of a probe or a scorer of texts",
    )
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args(arguments)
    try:
        check(options.checkpoint)
        tokenizer = pretrained.tokenizer(options.checkpoint)
        model, info = checkpoint.load(options.checkpoint)
        reference = None
        if info.reference is not None:
            where = beside(options.checkpoint, info.reference)
            reference, _ = checkpoint.load(where, family="log_ratio")
        states, read, reads = None, None, model.config
        if info.family == "probe":
            states = States(options.base or _base(info.base_model), progress=True)
            reads = pretrained.configuration(states.base)
        if info.reads is not None:
            base = options.base or _base(info.base_model)
            own, tokenizer = tokenizer, pretrained.tokenizer(base)
            read = texts.of(model.config, own, tokenizer, info.reads)
            reads = pretrained.configuration(base)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        report = validate(
            model.to(device),
            info,
            data.load(options.rollouts, "rollouts", tokenizer, reads=networks.longest(reads)),
            data.read(options.completions) if options.completions else None,
            tokenizer.pad_token_id or 0,
            reference=None if reference is None else reference.to(device),
            states=states,
            texts=read,
            batch_size=options.batch_size,
            progress=True,
        )
        update(options.checkpoint, report)
    except (OSError, ValueError) as error:
        sys.exit(f"trimtab: {error}")
    sys.stdout.write(summary(report) + "\n")
    if sentence := warning(report):
        sys.stderr.write(f"trimtab: {sentence}\n")


def _base(name: str) -> str:
    """The base that a checkpoint names."""
    return str(demo.base()) if name == "trimtab-demo-base" else name


if __name__ == "__main__":
    main()
