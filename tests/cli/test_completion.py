"""What a shell completes: in a real bash, with the script that `rwkv --install-completion` puts there."""

import shlex
import shutil
import subprocess
import sys

import pytest

from rwkv_cli.sessions import state_store

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

SCRIPT = """
PATH={folder}:$PATH
eval "$(_RWKV_COMPLETE=source_bash rwkv)"
COMP_WORDS=({words})
COMP_CWORD={last}
_rwkv_completion rwkv
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def completed(tmp_path):
    """`completed(*words)` is what bash is offered for the last of the words, each as it was typed."""
    program = tmp_path / "bin" / "rwkv"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m rwkv_cli "$@"\n')
    program.chmod(0o755)

    def call(*words):
        quoted = " ".join(shlex.quote(word) for word in ("rwkv", *words))
        script = SCRIPT.format(folder=shlex.quote(str(program.parent)), words=quoted, last=len(words))
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
        assert done.stderr == ""
        return done.stdout.splitlines()

    return call


@pytest.fixture
def states():
    state_store.folder().mkdir(parents=True)
    for name in ("my own book", "my own tale", "other"):
        (state_store.folder() / f"{name}.safetensors").touch()


@pytest.mark.usefixtures("states")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("", [r"my\ own\ book", r"my\ own\ tale", "other"]),
        ("my", [r"my\ own\ book", r"my\ own\ tale"]),
        (r"my\ own\ t", [r"my\ own\ tale"]),
        ('"my own t', ["my own tale"]),
        ("'my", ["my own book", "my own tale"]),
        ("x", [""]),
    ],
)
@pytest.mark.parametrize("before", [("state", "show"), ("generate", "--state")])
def test_names_with_spaces(completed, before, typed, offered):
    assert completed(*before, typed) == offered


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("generate", "--device", ""), ["auto", "cuda", "cpu", "reference"]),
        (("chat", "--device", "c"), ["cuda", "cpu"]),
        (("chat", "--think", "o"), ["on", "off"]),
        (("generate", "--template", "g1"), ["g1", "g1h"]),
        (("chat", "-m", "g1-7"), ["g1-7.2b"]),
        (("models", "default", "g"), ["gosling"]),
    ],
)
def test_values(completed, words, offered):
    assert sorted(completed(*words)) == sorted(offered)
