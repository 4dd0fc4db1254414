"""The `trimtab` command."""

import socket
import subprocess
import sys
import time

import pytest
from conftest import KEY, environment, free_port


def trimtab(*args, **env):
    return subprocess.run(
        [sys.executable, "-m", "trimtab_server.cli", *args],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(**env),
        check=False,
    )


def test_version_needs_no_engine():
    script = (
        "import sys; from trimtab_server import cli; "
        "assert not {'torch', 'vllm', 'transformers'} & set(sys.modules), 'heavy'; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("trimtab ")


def test_a_missing_scorer_is_reported_before_torch_loads():
    script = (
        "import sys; sys.modules.update(torch=None, vllm=None, transformers=None)\n"
        "from trimtab_server import cli; cli.main()"
    )
    command = ["serve", "demo", "--port", "0", "--scorer", "x=./not-there"]
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert done.returncode == 1
    assert done.stderr.startswith("trimtab: scorer 'x' cannot be loaded: ./not-there is neither")
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_taken_port_is_reported_before_anything_loads():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        began = time.monotonic()
        done = trimtab("serve", "demo", "--port", port)
    assert done.returncode == 1
    assert port in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 8


@pytest.mark.slow
def test_serve_tells_what_is_missing():
    no_scorer = trimtab("serve", "some-model", "--port", "0")
    assert no_scorer.returncode == 1
    assert "--scorer NAME=PATH" in no_scorer.stderr
    no_model = trimtab("serve")
    assert no_model.returncode == 1
    assert "model" in no_model.stderr
    flag_first = trimtab("serve", "--max-model-len", "9", "demo")
    assert flag_first.returncode != 0
    assert "model first" in flag_first.stderr


@pytest.mark.slow
def test_an_empty_key_does_not_open_the_server():
    for args, env in (
        (["--api-key", ""], {}),
        (["--admin-key", ""], {}),
        ([], {"TRIMTAB_API_KEY": ""}),
        ([], {"TRIMTAB_API_KEY": ","}),
        (["--upstream-key", " "], {}),
    ):
        refused = trimtab("serve", "demo", "--port", "0", *args, **env)
        assert refused.returncode == 1
        assert "key" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_generate_without_a_server():
    done = trimtab("generate", "hello", "--url", f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "trimtab serve demo" in done.stderr
    assert "Traceback" not in done.stderr


def test_generate(server):
    command = ["generate", "The room was", "--scorer", "sentiment=1", "--beta", "4", "--seed", "1"]
    command += ["--max-tokens", "12", "--url", server.url]
    done = trimtab(*command, TRIMTAB_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert "sentiment " in done.stdout
    assert "KL " in done.stdout
    streamed = trimtab(*command, "--stream", "--api-key", KEY)
    assert streamed.stdout.split("[")[0].strip() == done.stdout.split("[")[0].strip()


def test_generate_passes_errors_on(server):
    refused = trimtab("generate", "x", "--url", server.url, "--scorer", "unheard-of=1")
    assert refused.returncode == 1
    assert "API key" in refused.stderr
    unknown = trimtab(
        "generate", "x", "--url", server.url, "--scorer", "unheard-of=1", TRIMTAB_API_KEY=KEY
    )
    assert unknown.returncode == 1
    assert "no scorer of that name" in unknown.stderr
