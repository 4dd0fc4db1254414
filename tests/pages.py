"""The commands that the pages of this repository show."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "deploy" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
OURS = ("trimtab", "python", "make", "curl")
OTHERS = [
    "accelerate",
    "docker",
    "helm",
    "litellm",
    "mkdir",
    "pip",
    "printf",
    "promtool",
    "ray",
    "vllm",
]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.M | re.S)
INDENTED = re.compile(r"(?<=\n\n)((?: {4}.*\n)+)")
INLINE = re.compile(r"`((?:trimtab|python|make|curl|pip|promtool|helm) [^`…]+)`")
COMMENT = re.compile(r"(?:^|(?<=\s))#[^\n'\"]*$", re.M)
ASSIGNED = re.compile(r"\w+=")


def scripts(text: str) -> Iterator[str]:
    """Shell of a page: blocks of sh, and indented blocks."""
    yield from (code for _, language, code in FENCE.findall(text) if language == "sh")
    for code in INDENTED.findall(FENCE.sub("", text)):
        if program(next(commands(code), [""])) in (*OURS, *OTHERS):
            yield code


def mentions(text: str) -> Iterator[str]:
    """Commands within a sentence, which may leave out arguments."""
    yield from (code.replace("\n", " ") for code in INLINE.findall(FENCE.sub("", text)))


def commands(script: str) -> Iterator[list[str]]:
    """The words of each command of a script."""
    script = COMMENT.sub("", re.sub(r"\\\n\s*", " ", script)).strip() + "\n"
    lexer = shlex.shlex(script, posix=True, punctuation_chars=";|&\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words: list[str] = []
    try:
        for word in lexer:
            if set(word) <= set(";|&\n"):
                if words:
                    yield words
                words = []
            else:
                words.append(word)
    except ValueError:  # an apostrophe: this is no shell
        return


def variables(words: list[str]) -> list[str]:
    """The NAME=VALUE before a command's program."""
    return words[: next((i for i, word in enumerate(words) if not ASSIGNED.match(word)), None)]


def program(words: list[str]) -> str:
    """The program of a command."""
    rest = words[len(variables(words)) :]
    return rest[0] if rest else ""


def page_commands(read: Callable[[str], Iterator[str]]) -> list[tuple[str, list[str]]]:
    """Name of the page and words of each command; read: `scripts` or `mentions`."""
    return [
        (str(page.relative_to(ROOT)), words)
        for page in PAGES
        for script in read(page.read_text())
        for words in commands(script)
    ]
