"""What tests share: Hypothesis without time limits, a tiny model, and ways to run the command line."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

# Before NumPy is imported: its threads and those of the kernels would wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from helpers.models import write_file
from helpers.writers import random_weights
from hypothesis import settings as hypothesis_settings

from rwkv_cli import settings
from rwkv_cli.cli.terminal import ui
from rwkv_cli.engine.gpu import probe
from rwkv_cli.errors import DeviceError
from rwkv_cli.text.tokenizer import TokenizerSpec

if TYPE_CHECKING:
    from helpers.hub_server import Hub

# No deadline: a busy machine is not a failure. Examples are the same in every run, so that a failure comes from a
# change and not from chance; with RWKV_RANDOM_TESTS set they are new ones.
hypothesis_settings.register_profile("rwkv", deadline=None, derandomize="RWKV_RANDOM_TESTS" not in os.environ)
hypothesis_settings.load_profile("rwkv")

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

RWKV = (sys.executable, "-m", "rwkv_cli")


@pytest.fixture(scope="session")
def byte_vocabulary() -> TokenizerSpec:
    """A vocabulary in which every byte is a token, its value plus 1; 0 ends a document."""
    lines = (f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256))
    return TokenizerSpec("world", "".join(lines).encode())


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, byte_vocabulary: TokenizerSpec) -> Path:
    """The path of a model file that generates random bytes."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return write_file(path, random_weights(), tokenizer=byte_vocabulary)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The user's environment variables do not change what commands do; models and states are the test's own."""
    variables = (key.variable for key in settings.KEYS.values())
    for name in (*variables, "RWKV_DEBUG", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RWKV_DATA_DIR", str(tmp_path_factory.mktemp("data")))
    monkeypatch.setenv("RWKV_CONFIG_DIR", str(tmp_path_factory.getbasetemp() / "config"))
    ui.use_theme("auto")
    monkeypatch.setenv("RWKV_CACHE_SIZE", "0")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands compute on the CPU, even on a machine with a GPU."""

    def gpus() -> tuple[probe.GpuFacts, ...]:
        raise DeviceError(probe.NO_GPU)

    monkeypatch.setattr(probe, "gpus", gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for other processes


@dataclass
class Result:
    """What one command did: its exit code and output."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line on stderr that says why it failed, without "rwkv: "."""
        assert self.out == ""
        assert self.err.startswith("rwkv: ")
        assert self.err.count("\n") == 1
        assert "Traceback" not in self.err
        assert "should not happen" not in self.err
        return self.err.removeprefix("rwkv: ").strip()


class Rwkv(Protocol):
    """Runs one command in this process; `stdin` is piped into it, None stands for a terminal."""

    def __call__(self, *arguments: object, stdin: bytes | None = None) -> Result: ...


class Stdin(io.TextIOWrapper):
    """A text to read, from a pipe or from what looks like a terminal."""

    def __init__(self, data: bytes, is_terminal: bool) -> None:
        super().__init__(io.BytesIO(data))
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.fixture(scope="session")
def compiled_kernels() -> None:
    """The cache has the kernels, so that no command says that it compiles them."""
    from cpu_kernels.runtime import aot
    from cpu_kernels.runtime.compiler import ENTRY_POINTS

    aot.compile_missing(ENTRY_POINTS)
    for name in ENTRY_POINTS:
        aot.kernel(name)


@pytest.fixture
def rwkv(
    compiled_kernels: None,  # noqa: ARG001
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Rwkv:
    """`rwkv(...)` runs a command: see `Rwkv`."""
    from rwkv_cli.cli.main import run

    def call(*arguments: object, stdin: bytes | None = None) -> Result:
        stream = Stdin(stdin or b"", is_terminal=stdin is None)
        monkeypatch.setattr("sys.stdin", stream)
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return call


class Terminal:
    """A command on a pseudo-terminal, and what it has shown."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self._master = master
        self._is_open = True
        self.shown = ""

    def read_until(self, text: str) -> None:
        """Read until `text` is shown; fails if the command ends before that."""
        while text not in self.shown:
            assert self._read(), f"no {text!r} in {self.shown!r}"

    def wait_for(self, pattern: str, start: int = 0) -> int:
        """Read until a pattern is shown after a place; gives the place behind it. Fails if the command ends before."""
        while not (found := re.compile(pattern).search(self.shown, start)):
            assert self._read(), f"no {pattern!r} in {self.shown[start:]!r}"
        return found.end()

    def hang_up(self) -> int:
        """Close the terminal, as a window is closed; gives the exit code."""
        self.close()
        return self.process.wait(60)

    def close(self) -> None:
        """Close the terminal, if it is open."""
        if self._is_open:
            self._is_open = False
            os.close(self._master)

    def send(self, keys: str) -> None:
        """Type these characters."""
        os.write(self._master, keys.encode())

    def finish(self) -> int:
        """Read to the end; gives the exit code."""
        while self._read():
            pass
        return self.process.wait(60)

    def _read(self) -> bool:
        """Read some output; false at the end."""
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux, once no process has the terminal open
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)


@pytest.fixture
def terminal(
    compiled_kernels: None,  # noqa: ARG001
) -> Callable[..., AbstractContextManager[Terminal]]:
    """`with terminal(*arguments, **environment) as it:` runs a command on a pseudo-terminal."""
    pty = pytest.importorskip("pty")
    import fcntl
    import termios

    @contextmanager
    def start(*arguments: object, command: Sequence[str] = RWKV, **environment: str) -> Iterator[Terminal]:
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "80"} | environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # it hears of a hang-up
        )
        os.close(slave)
        it = Terminal(process, master)
        try:
            yield it
        finally:
            process.kill()
            process.wait()
            it.close()

    return start


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine in place of the public one; all folders are new and empty."""
    from helpers.hub_server import Hub
    from huggingface_hub import constants

    from rwkv_cli.catalog.hub import failures
    from rwkv_cli.catalog.registry import entries

    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "hf" / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(failures, "FIRST_DELAY", 0.001)
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
    monkeypatch.setenv("RWKV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("RWKV_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("RWKV_CONFIG_DIR", str(tmp_path / "config"))
    entries.cache_clear()
    yield server
    server.close()
    entries.cache_clear()
