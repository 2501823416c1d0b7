"""Standard streams: pipes that would block, and streams that are closed."""

import contextlib
import io
import os
import subprocess
import sys

import pytest

from rwkv_cli.cli.terminal import streams

fcntl = pytest.importorskip("fcntl")

RWKV = (sys.executable, "-m", "rwkv_cli")
SIZE = 300_000  # more than a pipe holds
PREPARED = "import sys; from rwkv_cli.cli.terminal import streams; streams.prepare(); "


@pytest.fixture
def pipe():
    """Both ends of a pipe that does not block."""
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def test_a_reader_waits_for_what_is_not_there_yet(pipe, monkeypatch):
    reading, writing = pipe
    waits, pieces = [], [b"one\n", b"two", None]

    def select(*waiting):
        waits.append(waiting)
        if (piece := pieces.pop(0)) is None:
            os.close(writing)
        else:
            os.write(writing, piece)

    monkeypatch.setattr(streams.select, "select", select)
    stream = io.BufferedReader(streams._Waiting(reading))
    assert (stream.readline(), stream.read()) == (b"one\n", b"two")
    assert waits == [([reading], [], [])] * 3


def test_a_writer_waits_for_room(pipe, monkeypatch):
    reading, writing = pipe
    read = bytearray()

    def select(*waiting):
        assert waiting == ([], [writing], [])
        read.extend(os.read(reading, SIZE))

    monkeypatch.setattr(streams.select, "select", select)
    data = os.urandom(SIZE)
    with io.BufferedWriter(streams._Waiting(writing)) as stream:
        stream.write(data)
    read.extend(os.read(reading, SIZE))
    assert read == data
    os.fstat(writing)  # the descriptor stays open


def full(descriptor):
    """Wait until no more can be written to a pipe."""
    held = -1
    while True:
        buffer = bytearray(4)
        fcntl.ioctl(descriptor, 0x541B, buffer)  # FIONREAD
        before, held = held, int.from_bytes(buffer, sys.byteorder)
        if held >= 60_000 and held == before:
            return


@pytest.mark.skipif(sys.platform != "linux", reason="needs FIONREAD as on Linux")
@pytest.mark.parametrize("unbuffered", [{}, {"PYTHONUNBUFFERED": "1"}])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_slow_reader_gets_everything(pipe, unbuffered, stream):
    reading, writing = pipe
    script = PREPARED + f"sys.{stream}.write('a' * {SIZE}); print('end', file=sys.{stream})"
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | unbuffered, **{stream: writing}
    )
    os.close(writing)
    full(reading)
    os.set_blocking(reading, True)
    data = b""
    while piece := os.read(reading, 65536):
        data += piece
    assert process.wait(60) == 0
    assert data == b"a" * SIZE + b"end\n"


def test_commands_read_a_pipe_that_does_not_block(pipe, rwkv):
    """The prompt comes when the program is waiting for it, or before: it is read to its end in any case."""
    reading, writing = pipe
    options = ("generate", "-n", "2", "--seed", "1")
    expected = rwkv(*options, "-p", "Once upon a time").out
    process = subprocess.Popen([*RWKV, *options], stdin=reading, stdout=subprocess.PIPE, text=True)
    for part in (b"Once upon", b" a time"):
        os.write(writing, part)
    os.close(writing)
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, expected)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path, closed):
    """What is written to a closed stream must not end up in a file that was opened since."""
    file = tmp_path / "file"
    script = PREPARED + (
        f"import os; file = open({str(file)!r}, 'w'); number = file.fileno(); "
        "print('out'); print('err', file=sys.stderr); os.write(1, b'1'); os.write(2, b'2'); "
        "sys.exit(number < 3)"
    )
    command = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, script]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, timeout=60).returncode == 0
    assert file.read_bytes() == b""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("generate -n 1", 2, "no prompt given"),
        ("generate -f - -n 1", 2, "cannot read the prompt from standard input: it is closed"),
        ("generate --batch - -n 1", 2, "cannot read the prompt from standard input: it is closed"),
        ("generate --batch '' -n 1", 2, "cannot read the prompt from standard input: it is closed"),
        ("state save s", 2, "no prompt given"),
        ("state load s", 1, "unknown state s"),
        ("chat", 0, ""),
        ("chat --name talk", 0, ""),
        ("generate -p a -n 1 --seed 1 -q", 0, ""),
        ("info", 0, ""),
        ("models", 0, ""),
        ("state list", 0, "no states yet"),
        ("state cache", 0, ""),
        ("state rm s", 1, "unknown state s"),
        ("models rm s", 2, "s is not in the model store"),
        ("pull nothing", 2, "unknown model"),
        ("generate -m g1-0.1b -p a", 1, "download it with `rwkv pull"),
    ],
)
def test_every_command_does_without_standard_input(compiled_kernels, arguments, code, said):  # noqa: ARG001
    command = ["sh", "-c", f'exec "$0" -m rwkv_cli {arguments} <&-', sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "should not happen" not in done.stderr
    assert "Traceback" not in done.stderr
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


@pytest.mark.skipif(os.name != "posix", reason="pipes end otherwise there")
def test_an_error_that_nobody_reads_is_no_other_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "rwkv_cli", "generate", "a", "--json", "--top-p", "5"]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writer)
    assert done.returncode == 2
    assert done.stderr.decode() == "rwkv: --top-p is 5: it must be between 0 and 1\n"
