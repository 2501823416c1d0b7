"""Ctrl-C that waits for the end of a token."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from conftest import RWKV

from cpu_kernels.runtime import leftovers
from rwkv_cli.cli.terminal.interrupts import Interrupts

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_before_it_is_held_an_interrupt_raises():
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        ctrl_c()
    assert not interrupts.asked


def test_once_it_is_held_the_first_waits_and_the_second_raises():
    with Interrupts() as interrupts:
        interrupts.hold()
        assert not interrupts.asked
        ctrl_c()
        assert interrupts.asked
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()


@pytest.mark.parametrize("error", [None, ValueError])
def test_what_was_there_before_comes_back(error):
    before = signal.getsignal(signal.SIGINT)
    try:
        with Interrupts():
            assert signal.getsignal(signal.SIGINT) != before
            if error:
                raise error
    except ValueError:
        pass
    assert signal.getsignal(signal.SIGINT) == before


def test_other_threads_never_hear_of_one():
    seen = []

    def use():
        with Interrupts() as interrupts:
            interrupts.hold()
            seen.append(interrupts.asked)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.parametrize(("name", "code"), [("SIGHUP", 129), ("SIGTERM", 143)])
def test_a_signal_that_ends_a_program_removes_what_is_half_written(tmp_path, name, code):
    program = f"""
import os, signal, sys
from pathlib import Path
from rwkv_cli.cli import main
from rwkv_cli.files.atomic import replacing
signal.signal(signal.{name}, signal.SIG_DFL)
def run(_):
    with replacing(Path({str(tmp_path / "x")!r})):
        os.kill(os.getpid(), signal.{name})
main.run = run
main.main()
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == code
    assert list(tmp_path.iterdir()) == []


def test_nohup_is_respected():
    program = """
import signal
from rwkv_cli.cli import main
signal.signal(signal.SIGHUP, signal.SIG_IGN)
main._exit_on_signals()
assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("where", ["cache/models", "cache/prompts", "data/states", "data/models", "."])
def test_any_command_removes_what_a_killed_one_left(tmp_path, where):
    folder = tmp_path / where
    folder.mkdir(parents=True, exist_ok=True)
    live = leftovers.temporary_beside(folder / "y")  # as this process would write it
    live.touch()
    writer = f"""
import os, sys
from pathlib import Path
from rwkv_cli.files.atomic import replacing
with replacing(Path({str(folder / "x")!r})):
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", writer])
    assert len(list(folder.glob(".*.tmp"))) == 2
    variables = os.environ | {"RWKV_CACHE_DIR": f"{tmp_path}/cache", "RWKV_DATA_DIR": f"{tmp_path}/data"}
    done = subprocess.run([*RWKV, "--version"], env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(folder.glob(".*.tmp")) == [live]


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "-h"]], ids=" ".join)
def test_help_looks_for_nothing_on_the_disk(arguments):
    program = f"""
import os, sys
from rwkv_cli.cli import main
main._remove_leftovers = lambda: os._exit(3)
sys.argv = ["rwkv", *{arguments!r}]
main.main()
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
