"""An MCP server as a child process, whose tools a model may call; the only module that knows the package mcp."""

from __future__ import annotations

import asyncio
import json
import shlex
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from rwkv_cli.errors import RwkvError, UsageError
from rwkv_cli.text.tool_calls.tools import Tool, tools_of

SECONDS = 60.0
"""That a server has to start, and to answer a call."""

_Request = tuple[str, Mapping[str, Any], "Future[str]"]


class McpServer:
    """A server over stdio. It has a thread of its own, since the package mcp is asynchronous; `close` ends both."""

    def __init__(self, command: str) -> None:
        """Start a command, as in a shell. Raises UsageError if that fails, or the package mcp is missing."""
        self.command = command
        try:
            self._program, *self._arguments = shlex.split(command)
        except ValueError:
            raise UsageError(f"--mcp is {command!r}: it must be a command") from None
        try:
            import mcp  # noqa: F401
        except ImportError:
            raise UsageError(
                "--mcp needs a package: in the folder of rwkv's sources, pip install '.[mcp]'"
            ) from None
        self._requests: asyncio.Queue[_Request | None] = asyncio.Queue()
        self._loop = asyncio.new_event_loop()
        started: Future[list[dict[str, Any]]] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        try:
            found = started.result(SECONDS)
            self.tools: tuple[Tool, ...] = tools_of(found) if found else ()
        except TimeoutError:
            raise UsageError(
                f"the MCP server {command!r} did not start within {SECONDS:.0f} seconds"
            ) from None
        except RwkvError:
            self.close()
            raise
        except Exception as error:
            raise UsageError(f"the MCP server {command!r} cannot be used: {_sentence(error)}") from None

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """What a tool answers. Raises RwkvError where it does not."""
        if not self._thread.is_alive():
            raise RwkvError(f"the MCP server {self.command!r} has ended")
        answer: Future[str] = Future()
        self._loop.call_soon_threadsafe(self._requests.put_nowait, (name, arguments, answer))
        try:
            return answer.result(SECONDS)
        except TimeoutError:
            raise RwkvError(f"the tool {name} did not answer within {SECONDS:.0f} seconds") from None
        except Exception as error:
            raise RwkvError(f"the tool {name} failed: {_sentence(error)}") from None

    def close(self) -> None:
        """End the server."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._requests.put_nowait, None)
            self._thread.join(5)

    def _run(self, started: Future[list[dict[str, Any]]]) -> None:
        try:
            self._loop.run_until_complete(self._serve(started))
        except BaseException as error:  # for whoever waits
            if not started.done():
                started.set_exception(error)

    async def _serve(self, started: Future[list[dict[str, Any]]]) -> None:
        """The whole life of the connection, in one task."""
        from mcp import Client, StdioServerParameters

        parameters = StdioServerParameters(command=self._program, args=self._arguments)
        async with Client(parameters, read_timeout_seconds=SECONDS) as client:
            started.set_result(await _tools(client))
            while request := await self._requests.get():
                name, arguments, answer = request
                try:
                    answer.set_result(_text(await client.call_tool(name, dict(arguments))))
                except Exception as error:
                    answer.set_exception(error)


async def _tools(client: Any) -> list[dict[str, Any]]:
    """All tools of a server, in OpenAI's form."""
    found, cursor = [], None
    while True:
        page = await client.list_tools(cursor=cursor)
        found += [
            {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
            for tool in page.tools
        ]
        cursor = page.next_cursor
        if not cursor:
            return found


def _text(result: Any) -> str:
    """What a result says, for a model that reads text."""
    parts = [getattr(part, "text", None) or f"({part.type})" for part in result.content]
    if not parts and result.structured_content is not None:
        parts = [json.dumps(result.structured_content, ensure_ascii=False)]
    return ("Error: " if result.is_error else "") + "\n".join(parts)


def _sentence(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error) or type(error).__name__).splitlines()[0]
