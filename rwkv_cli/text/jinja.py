"""Renders Jinja templates in a process of their own, within limits of time, memory and size."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from rwkv_cli.errors import UsageError

SECONDS = 10.0
"""For one text, the start of the process included."""

_WORKER = Path(__file__).with_name("jinja_worker.py")


class _Renderer:
    """The process, started when it is first needed and again after it had to be killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(self, source: str, variables: Mapping[str, object]) -> str:
        """See `render`."""
        request = json.dumps({"source": source, "variables": variables}).encode() + b"\n"
        with self._lock:
            answer = self._asked(request)
        if answer is None:
            raise UsageError(f"the chat template takes more than {SECONDS:.0f} s, or too much memory")
        if "error" in answer:
            raise UsageError(f"the chat template cannot be used: {answer['error']}")
        return str(answer["text"])

    def _asked(self, request: bytes) -> dict[str, str] | None:
        """The answer of the process; None if it had to be killed, or died."""
        process = self._running()
        assert process.stdin
        assert process.stdout
        timer = threading.Timer(SECONDS, process.kill)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(request)
            process.stdin.flush()
            line = process.stdout.readline()
            answer: dict[str, str] | None = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            answer = None
        except BaseException:  # interrupted: what comes now would be taken for the answer to the next request
            self.close()
            raise
        finally:
            timer.cancel()
        if answer is None:
            self.close()
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            # -P: the folder of the script must not be searched for modules.
            command = [sys.executable, "-P", str(_WORKER)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        return self._process

    def forget(self) -> None:
        """Begin anew in a process that was forked: the other process answers its parent."""
        self._process, self._lock = None, threading.Lock()

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if pipe:
                        pipe.close()
            process.wait()


_renderer = _Renderer()
atexit.register(_renderer.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renderer.forget)


def render(source: str, variables: Mapping[str, object]) -> str:
    """The text of a Jinja template.

    Raises UsageError for a template that is malformed, refuses, or takes too long or too much memory.
    """
    return _renderer.render(source, variables)
