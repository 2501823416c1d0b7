"""Servers to talk to: as a process of their own, or in this one with a model that says what a test wants."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx2
import uvicorn

from rwkv_cli import paths
from rwkv_cli.model import Model
from rwkv_cli.reporting import Reporter
from rwkv_cli.server.app import make_app
from rwkv_cli.server.settings import ServerSettings

SECONDS = 60
"""That anything may take."""


class Client(httpx2.Client):
    """A client of one server."""

    def ask(self, text: str, **fields: object) -> dict[str, Any]:
        """The answer to a message, as the whole body of OpenAI's chat."""
        return self.chat([{"role": "user", "content": text}], **fields)

    def chat(self, messages: list[dict[str, str]], **fields: object) -> dict[str, Any]:
        """The answer in a conversation."""
        response = self.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 12, **fields})
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    def said(self, messages: list[dict[str, str]], text: str, **fields: object) -> dict[str, Any]:
        """Add a message and the answer to a conversation: the whole body."""
        messages.append({"role": "user", "content": text})
        body = self.chat(messages, **fields)
        messages.append({"role": "assistant", "content": answer_of(body)})
        return body

    def events(self, path: str, fields: Mapping[str, object]) -> list[tuple[str | None, Any]]:
        """The events of a stream: the name of each, and its data."""
        found = list[tuple[str | None, Any]]()
        with self.stream("POST", path, json={"stream": True, **fields}) as response:
            assert response.status_code == 200, response.read()
            assert response.headers["content-type"].startswith("text/event-stream")
            text = "".join(response.iter_text())
        assert text.endswith("\n\n")
        for block in text.removesuffix("\n\n").split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.split("\n"))
            assert lines.keys() <= {"event", "data"}
            data = lines["data"]
            found.append((lines.get("event"), data if data == "[DONE]" else json.loads(data)))
        return found


def answer_of(body: Mapping[str, Any]) -> str:
    """The text of the first answer."""
    text: str = body["choices"][0]["message"]["content"]
    return text


def cached_of(body: Mapping[str, Any]) -> int:
    """Tokens of the prompt that were not read again."""
    count: int = body["usage"]["prompt_tokens_details"]["cached_tokens"]
    return count


@contextmanager
def serving(model: Model | None = None, **settings: Any) -> Iterator[Client]:
    """A server in this process, with a model in place of the built-in one."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        chosen = ServerSettings(**{"disk_bytes": 0, **settings})
        app = make_app(chosen, Reporter(), lambda _: None)
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        with patch("rwkv_cli.model.load", lambda *_, **__: model) if model else _nothing():
            thread.start()
            try:
                with Client(base_url=address, timeout=SECONDS) as client:
                    yield client
            finally:
                server.should_exit = True
                thread.join(SECONDS)
                assert not thread.is_alive()


@contextmanager
def _nothing() -> Iterator[None]:
    yield


class Process:
    """`rwkv serve` as a process of its own."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        """`folder` is for its cache and data; what is there stays."""
        cache = folder / "cache"
        for kernels in paths.cache_folder().glob("kernels-*"):  # compiled once, for all
            if not (cache / kernels.name).exists():
                shutil.copytree(kernels, cache / kernels.name)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rwkv_cli", "serve", "--port", "0", *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"RWKV_CACHE_DIR": str(cache), "RWKV_DATA_DIR": str(folder / "data")},
        )
        assert self.process.stderr
        self.log = list[str]()
        for line in self.process.stderr:
            self.log.append(line.strip())
            if line.startswith("serving at "):
                break
        else:
            raise AssertionError("\n".join(self.log))
        self.client = Client(base_url=self.log[-1].removeprefix("serving at "), timeout=SECONDS)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.log.append(line.strip())

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal; gives the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(SECONDS)
        self.client.close()
        return code


@contextmanager
def process(folder: Path, *arguments: object) -> Iterator[Process]:
    """A server in a process, which is killed at the end if it is still there."""
    server = Process(folder, *arguments)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        server.client.close()
