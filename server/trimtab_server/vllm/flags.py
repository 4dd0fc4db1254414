"""vLLM's own flags: their help, and errors in one line instead of its usage of 300 lines."""

import re
from typing import NoReturn

from vllm.utils.argparse_utils import FlexibleArgumentParser

from trimtab.errors import StartError
from trimtab_server.settings import Settings
from trimtab_server.usage import closest

try:  # vLLM 0.33 moved it
    from vllm.entrypoints.common.cli_args import make_arg_parser
except ImportError:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser

UNKNOWN = re.compile(r"unrecognized arguments?: (.*)", re.S)


class Parser(FlexibleArgumentParser):
    """vLLM's parser, whose errors are StartErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise a StartError in one line, with the flag that was meant."""
        message = " ".join(message.split())
        if (unknown := UNKNOWN.match(message)) is None:
            raise StartError(f"{message.rstrip('.')}; see trimtab serve --help-vllm.")
        flag = unknown[1].split()[0].partition("=")[0]
        known = [option for action in self._actions for option in action.option_strings]
        known += [f"--{name.replace('_', '-')}" for name in Settings.model_fields]
        meant = closest(flag, known)
        end = f"did you mean {meant}?" if meant else "see trimtab serve --help and --help-vllm."
        raise StartError(f"there is no flag {flag[:80]}; {end}")


def parser() -> FlexibleArgumentParser:
    """The parser of vLLM's server."""
    return make_arg_parser(Parser(prog="trimtab serve MODEL"))


def text() -> str:
    """The help of all of vLLM's flags."""
    return parser().format_help()
