"""Build the documentation site from the repository's own Markdown, without a network.

    python scripts/build_site.py [--out FOLDER]

The pages are copied with their folders, so that links between them hold as they are. A link to a
file that is no page, such as a script, becomes its text. The reference is made from docstrings.
"""

import argparse
import posixpath
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/**/*.md",
    "deploy/README.md",
    "docker/README.md",
    "benchmarks/results/**/*.md",
)
PICTURES = ("docs/**/*.png", "docs/**/*.svg", "benchmarks/results/**/*.png")
REFERENCE = {
    "engine": ("trimtab.engine", "The interface between the server and an engine"),
    "guidance": ("trimtab.local", "Guidance inside a Python program, without a server"),
    "parameters": ("trimtab.params", "The fields of a guided request"),
    "scorers": ("trimtab.scorers.base", "What a scorer family must be"),
    "fusion": ("trimtab.fusion", "How scores and logits become one distribution"),
    "candidates": ("trimtab.candidates", "Which tokens of a step are scored"),
    "errors": ("trimtab.errors", "Every error, its HTTP status and its OpenAI type"),
}
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```)", re.M | re.S)


def main() -> None:
    """Stage the pages and build them; a warning is an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / ".build" / "site")
    out = parser.parse_args().out.resolve()
    stage(out.parent / "pages")
    config = (ROOT / "docs" / "site.toml").read_text()
    staged = out.parent / "zensical.toml"
    staged.write_text(config.replace("SITE_DIR", out.name).replace('"PACKAGES"', packages()))
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "-f", staged]
    sys.exit(subprocess.run(command, cwd=out.parent, check=False).returncode)


def packages() -> str:
    """Where the reference finds the code, for the configuration."""
    return ", ".join(f'"{ROOT / name}"' for name in ("server", "lab", "guidance", "models"))


def stage(folder: Path) -> None:
    """Write every page and picture of the site into a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = {path.relative_to(ROOT) for pattern in PAGES for path in ROOT.glob(pattern)}
    for page in sorted(pages):
        text = (ROOT / page).read_text()
        write(folder / renamed(page), with_head(relink(text, page, pages), title(page, text)))
    for pattern in PICTURES:
        for picture in ROOT.glob(pattern):
            copy = folder / picture.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, copy)
    for name, (module, line) in REFERENCE.items():
        text = f"# {module}\n\n{line}.\n\n::: {module}\n"
        write(folder / "reference" / f"{name}.md", with_head(text, module))


def relink(text: str, page: Path, pages: set[Path]) -> str:
    """Links to pages, under the names that they have in the site; other local links as text."""

    def replace(match: re.Match[str]) -> str:
        words, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or "://" in target or target.startswith("mailto:"):
            return match[0]
        target_page = Path(posixpath.normpath(posixpath.join(page.parent.as_posix(), path)))
        if target_page / "README.md" in pages:
            target_page = target_page / "README.md"
        if target_page not in pages:
            return words
        link = posixpath.relpath(renamed(target_page).as_posix(), renamed(page).parent.as_posix())
        return f"[{words}]({link}{'#' * bool(anchor)}{anchor})"

    parts = FENCE.split(text)
    return "".join(part if i % 2 else LINK.sub(replace, part) for i, part in enumerate(parts))


def renamed(page: Path) -> Path:
    """The page's name in the site: a folder's README is its index."""
    return page.with_name("index.md") if page.name == "README.md" else page


def with_head(text: str, title: str) -> str:
    """The page with its title, and its first paragraph as the description for search engines."""
    if not re.search("^# ", text, re.M):
        text = f"# {title}\n\n{text}"
    paragraphs = (block.strip() for block in FENCE.sub("", text).split("\n\n"))
    first = next((block for block in paragraphs if re.match(r"[A-Z`*\[]", block)), title)
    plain = re.sub(r"[`*_\[\]\"]|\([^)]*\)", "", " ".join(first.split()))
    description = textwrap.shorten(plain, 155, placeholder=" …")
    return f'---\ntitle: "{title}"\ndescription: "{description}"\n---\n\n{text}'


def title(page: Path, text: str) -> str:
    """The title of a page; in the arena by its world, which may have several leaderboards."""
    if "arena" in page.parts:
        return f"{page.parent.name}: {page.stem.replace('-', ' ')}"
    heading = re.search("^# (.*)$", text, re.M)
    return heading[1] if heading else page.stem.replace("_", " ")


def write(path: Path, text: str) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    main()
