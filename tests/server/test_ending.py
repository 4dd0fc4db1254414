"""How a process ends: on signals and by deadlines, with no child left behind."""

import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest
from conftest import environment

pytestmark = [pytest.mark.scorecard(letter="F"), pytest.mark.slow]  # ends processes

HEAD = """
import ctypes, os, signal, subprocess, sys, time
from trimtab_server.shutdown import Signals, leave_within, unsignalled
def child():
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
"""
LONG_CALL = """
lock = __import__("threading").Lock()
print(child().pid, flush=True)
lock.acquire(); lock.acquire()
"""


@contextmanager
def running(script):
    """A script that has printed the ids of its children, and those."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + script],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    children = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    try:
        yield process, children
    finally:
        for one in (process, *children):
            if isinstance(one, psutil.Process) and not one.is_running():
                continue
            one.kill()
        process.communicate()


def gone(children):
    return not psutil.wait_procs(children, timeout=10)[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_and_its_children(number):
    with running("with Signals('farewell.'):" + LONG_CALL.replace("\n", "\n    ")) as (
        process,
        children,
    ):
        process.send_signal(number)
        assert process.wait(10) == 128 + number
        assert gone(children)
        assert process.stderr.read() == "\ntrimtab: farewell.\n"


def test_the_first_signal_may_mean_something_else_and_the_second_ends_all():
    script = """
with Signals() as signals:
    signals.first(lambda: os.write(1, b"draining\\n"))
    print(child().pid, flush=True)
    time.sleep(300)
"""
    with running(script) as (process, children):
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "draining\n"
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
        assert gone(children)


def test_a_signal_to_a_forked_process_is_not_the_parents():
    script = """
with Signals():
    pid = os.fork()
    if not pid:
        signal.pause()
        os._exit(0)
    time.sleep(0.5)
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
    time.sleep(0.5)
    print(flush=True)
    os._exit(7)
"""
    with running(script) as (process, _):
        assert process.wait(10) == 7


def test_a_deadline_ends_what_does_not_end_itself():
    with running("leave_within(0.5, 3)" + LONG_CALL) as (process, children):
        assert process.wait(10) == 3
        assert gone(children)


def test_children_may_be_spared_the_signals():
    script = """
with Signals():
    with unsignalled():
        spared = child()
    print(spared.pid, child().pid, flush=True)
    time.sleep(300)
"""
    with running(script) as (process, (spared, other)):
        spared.send_signal(signal.SIGINT)
        spared.terminate()
        other.terminate()
        deadline = time.monotonic() + 10
        while other.status() != psutil.STATUS_ZOMBIE:  # the control: it ends
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert spared.status() != psutil.STATUS_ZOMBIE
        process.terminate()
        assert process.wait(10) == 128 + signal.SIGTERM
        assert gone([spared])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_long_work_says_that_it_goes_on_later(number):
    script = """
from trimtab_server.commands.resumable import resumable
with resumable():
    print(child().pid, flush=True)
    time.sleep(300)
"""
    with running(script) as (process, children):
        process.send_signal(number)
        assert process.wait(10) == 128 + number
        assert gone(children)
        assert "run the same command again to resume" in process.stderr.read()


@pytest.mark.usefixtures("interruptible")
def test_signals_are_as_before_afterwards():
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    from trimtab_server.shutdown import Signals

    with Signals():
        assert signal.getsignal(signal.SIGINT) != before[signal.SIGINT]
    assert {n: signal.getsignal(n) for n in before} == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
