"""What tests share: Hypothesis without time limits, a tiny model, and ways to run the command line."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # its threads and those of the kernels would wait for each other

import pytest
from helpers.models import write_file
from helpers.writers import random_weights
from hypothesis import settings

from rwkv_cli.engine.gpu import probe
from rwkv_cli.errors import DeviceError
from rwkv_cli.text.tokenizer import TokenizerSpec

# A busy machine is no failure. The examples are the same every time, so that a failure is the change's and not the
# dice's; with RWKV_RANDOM_TESTS set they are new ones.
settings.register_profile("rwkv", deadline=None, derandomize="RWKV_RANDOM_TESTS" not in os.environ)
settings.load_profile("rwkv")

RWKV = (sys.executable, "-m", "rwkv_cli")


@pytest.fixture(scope="session")
def byte_vocabulary():
    """A vocabulary in which every byte is a token, its own value and one; 0 ends a document."""
    lines = (f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256))
    return TokenizerSpec("world", "".join(lines).encode())


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, byte_vocabulary):
    """The path of a model file that says random bytes."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return write_file(path, random_weights(), tokenizer=byte_vocabulary)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch, tmp_path_factory):
    """The variables of whoever runs the tests that change what commands do; no models and states but their own."""
    for name in ("RWKV_MODEL", "RWKV_DEBUG", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RWKV_DATA_DIR", str(tmp_path_factory.mktemp("data")))
    monkeypatch.setenv("RWKV_CONFIG_DIR", str(tmp_path_factory.getbasetemp() / "config"))
    monkeypatch.setenv("RWKV_CACHE_SIZE", "0")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """Commands compute on the CPU, whatever this machine has."""

    def gpus():
        raise DeviceError(probe.NO_GPU)

    monkeypatch.setattr(probe, "gpus", gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for other processes


@dataclass
class Result:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def sentence(self):
        """The one line on stderr that says why it failed."""
        assert self.out == ""
        assert self.err.startswith("rwkv: ")
        assert self.err.count("\n") == 1
        assert "Traceback" not in self.err
        assert "should not happen" not in self.err
        return self.err.removeprefix("rwkv: ").strip()


@pytest.fixture
def rwkv(capfd, monkeypatch):
    """Run one command line in this process; `stdin` is what is piped into it, a terminal without."""
    from rwkv_cli.cli.main import run

    def call(*arguments, stdin=None):
        stream = io.TextIOWrapper(io.BytesIO(stdin or b""))
        stream.isatty = lambda: stdin is None
        monkeypatch.setattr("sys.stdin", stream)
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Result(code, *capfd.readouterr())

    return call


class Terminal:
    """A command on a terminal of its own, and what it has shown."""

    def __init__(self, process, master):
        self.process = process
        self._master = master
        self.shown = ""

    def read_until(self, text):
        """Read until `text` is shown; fails when the command ends before."""
        while text not in self.shown:
            assert self._read(), f"no {text!r} in {self.shown!r}"

    def send(self, keys):
        """Type."""
        os.write(self._master, keys.encode())

    def finish(self):
        """Read to the end: the exit code."""
        while self._read():
            pass
        return self.process.wait(60)

    def _read(self):
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux, when nobody has the terminal open any more
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)


@pytest.fixture
def terminal():
    """`with terminal(...) as it:` runs a command on a pseudo-terminal."""
    pty = pytest.importorskip("pty")

    @contextmanager
    def start(*arguments, command=RWKV, **environment) -> Iterator[Terminal]:
        {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "RWKV_MODEL")}
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "80"} | environment,
            start_new_session=True,
        )
        os.close(slave)
        try:
            yield Terminal(process, master)
        finally:
            process.kill()
            process.wait()
            os.close(master)

    return start


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
    """A hub on this machine, instead of the one in the world; all folders are new and empty."""
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
