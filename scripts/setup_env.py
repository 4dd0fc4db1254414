"""Set up .venv: vLLM for this machine, the packages, the tests' tools.

    python3 scripts/setup_env.py [--extra cpu|gpu]

What an extra cannot say is said here. On the CPU, vLLM 0.32 wants the CPU build of torch 2.13, and
names torchvision, torchaudio and torchcodec, whose builds in the index are for CUDA and break
`import transformers`. Text models need none of the three, so empty wheels stand in for them.
"""

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV, BUILD = ROOT / ".venv", ROOT / ".build"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "trimtab-ready"

TORCH = "2.13.0"
ABSENT = {"torchvision": "0.28.0+none", "torchaudio": "2.11.0+none", "torchcodec": "0.14.0+none"}


def main() -> None:
    """Set up once; do nothing when nothing has changed since."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extra", choices=("cpu", "gpu"), help="which vLLM; default: detected")
    extra = parser.parse_args().extra or ("gpu" if has_gpu() else "cpu")
    if not (3, 11) <= sys.version_info[:2] < (3, 15):
        sys.exit(
            f"Trimtab needs Python 3.11 to 3.14 and this is {platform.python_version()}; "
            "name another one: make PYTHON=python3.12 serve"
        )
    wanted = fingerprint(extra)
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    say(f"setting up .venv for the {extra.upper()} (a few minutes, once)")
    if not PYTHON.exists():
        new = not VENV.exists()
        try:
            venv.create(VENV, with_pip=True)
        except subprocess.CalledProcessError:
            if new:
                shutil.rmtree(VENV, ignore_errors=True)
            sys.exit("Python's venv module has no pip; install your system's python3-venv package.")
    try:
        install(extra)
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"\nset-up stopped at: {' '.join(map(str, error.cmd[3:6]))} …\n"
            "The reason stands above. If it is the network or the package index, run the same "
            "command again: what was installed is kept."
        )
    STAMP.write_text(wanted)
    say("done")


def install(extra: str) -> None:
    """Install for one kind of machine, then let pip check that all fits."""
    options: list[str] = []
    if extra == "cpu":
        linux = platform.system() == "Linux"
        pins = {**ABSENT, "torch": f"{TORCH}+cpu" if linux else TORCH}
        options = ["--find-links", str(stand_ins()), "-c", str(constraints(pins))]
        install_cpu_torch(pins["torch"])
    say("vLLM, the packages and the tests' tools")
    pip("install", "uv", check=False)
    install_packages(*options, "-e", f"{ROOT}[{extra},train,dev]")
    if not install_packages(*options, "-e", f"{ROOT}[real]", check=False):
        say("the packages for a real base model (trimtab[real]) cannot be had; going on without")
    # On all cores at once, which pip does not. Left to the first import, it would be done again by
    # each process where Python may not write. A few templates are no Python: they do not matter.
    compiling = [
        PYTHON,
        "-m",
        "compileall",
        "-qq",
        "-j",
        "0",
        "-x",
        "site-packages/.*/tests/",
        VENV / "lib",
    ]
    subprocess.run(compiling, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pip("check")


def install_packages(*arguments: str | Path, check: bool = True) -> bool:
    """Install with uv, in a third of pip's time; else with pip, which has its own configuration."""
    command = [PYTHON, "-m", "uv", "pip", "install", "--quiet", "--python", PYTHON, *arguments]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if subprocess.run(command, check=False, **quiet).returncode == 0:
        return True
    return pip("install", *map(str, arguments), check=check)


def install_cpu_torch(version: str) -> None:
    """The CPU build of torch: as pip is configured here, else from PyTorch's own index.

    uv knows where that index is, so it need not stand here.
    """
    say(f"torch {version}")
    if pip("install", f"torch=={version}", check=False):
        return
    say("pip is not configured for torch's CPU builds; taking it from PyTorch's own index")
    pip("install", "uv")
    command = [PYTHON, "-m", "uv", "pip", "install", "--python", PYTHON, "--torch-backend", "cpu"]
    subprocess.run([*command, f"torch=={TORCH}"], check=True)


def stand_ins() -> Path:
    """Wheels that hold nothing but a name and a version."""
    folder = BUILD / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    for name, version in ABSENT.items():
        info = f"{name}-{version}.dist-info"
        files = {
            "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            "WHEEL": "Wheel-Version: 1.0\nGenerator: trimtab\nRoot-Is-Purelib: true\n"
            "Tag: py3-none-any\n",
            "RECORD": f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n",
        }
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            for file, text in files.items():
                wheel.writestr(f"{info}/{file}", text)
    return folder


def constraints(pins: dict[str, str]) -> Path:
    """A constraints file for pip."""
    path = BUILD / "constraints.txt"
    path.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
    return path


def pip(*arguments: str, check: bool = True) -> bool:
    """Run the environment's pip; whether it succeeded. Modules are compiled by `install`."""
    command = [PYTHON, "-m", "pip", *arguments]
    if arguments[0] == "install":
        command[4:4] = ["-qq", "--disable-pip-version-check", "--no-compile"]
    output = None if check else subprocess.DEVNULL
    return subprocess.run(command, check=check, stderr=output).returncode == 0


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers."""
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0


def fingerprint(extra: str) -> str:
    """Changes when what must be installed may have changed."""
    parts = [(ROOT / "pyproject.toml").read_bytes(), Path(__file__).read_bytes()]
    return f"{extra} {hashlib.sha256(b''.join(parts)).hexdigest()}\n"


def say(text: str) -> None:
    """One line of progress."""
    print(f"trimtab: {text}", flush=True)


if __name__ == "__main__":
    main()
