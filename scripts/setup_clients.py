"""Set up the clients of docs/clients.md under .clients, for their tests and their table.

    python3 scripts/setup_clients.py [NAME...]

Each client has an environment of its own, because some of them exclude each other's versions. Those
that stand already are kept; delete .clients to get newer ones. Those in JavaScript need npm. All of
them together take about 4 GB.
"""

import argparse
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = ROOT / ".clients"
PYTHON = {
    "openai": ["openai", "anthropic"],
    "langchain": ["langchain", "langchain-openai"],
    "llamaindex": ["llama-index-llms-openai-like"],
    # 1.107.0 was a compromised release.
    "litellm": ["litellm[proxy]>=1.100,!=1.107.*"],
    "pydantic-ai": ["pydantic-ai-slim[openai]"],
    "instructor": ["instructor"],
    "dspy": ["dspy", "litellm!=1.107.*"],
    "lm-eval": ["lm-eval[api]"],
    "open-webui": ["open-webui"],
}
"""Environment → its packages."""
LEFT_OUT = ["torch", "torchvision"]
"""Packages that Open WebUI needs for its own retrieval alone: gigabytes."""
JAVASCRIPT = {
    "node": ["openai"],
    "ai-sdk": ["ai", "@ai-sdk/openai-compatible"],
}
"""The same for npm."""


def main() -> None:
    """Set up the clients that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join([*PYTHON, *JAVASCRIPT]))
    names = parser.parse_args().names or [*PYTHON, *JAVASCRIPT]
    unknown = set(names) - {*PYTHON, *JAVASCRIPT}
    if unknown:
        parser.error(f"unknown client; choose from {', '.join([*PYTHON, *JAVASCRIPT])}")
    failed = [name for name in names if not set_up(name)]
    if failed:
        sys.exit(f"not set up: {', '.join(failed)}; the reasons stand above")


def set_up(name: str) -> bool:
    """Set up one client, unless it stands already; False if that fails."""
    folder = CLIENTS / name
    if (folder / "ready").exists():
        return True
    print(f"setting up {folder.relative_to(ROOT)}", flush=True)
    try:
        if name in PYTHON:
            install(folder, PYTHON[name])
        elif shutil.which("npm") is None:
            print("npm is not installed", flush=True)
            return False
        else:
            folder.mkdir(parents=True, exist_ok=True)
            command = ["npm", "install", "--silent", "--prefix", folder, *JAVASCRIPT[name]]
            subprocess.run(command, check=True)
    except subprocess.CalledProcessError:
        return False
    (folder / "ready").touch()
    return True


def install(folder: Path, packages: list[str]) -> None:
    """Make an environment; by uv, which is fast and can leave packages out."""
    uv, nothing = CLIENTS / "uv", CLIENTS / "left-out.txt"
    if not (uv / "bin" / "uv").exists():
        venv.create(uv, with_pip=True, clear=True)
        subprocess.run([uv / "bin" / "python", "-m", "pip", "install", "-q", "uv"], check=True)
    nothing.write_text("".join(f'{package}; python_version < "3"\n' for package in LEFT_OUT))
    venv.create(folder, clear=True)
    command = [uv / "bin" / "uv", "pip", "install", "-q", "--python", folder / "bin" / "python"]
    subprocess.run([*command, "--override", nothing, *packages], check=True)


if __name__ == "__main__":
    main()
