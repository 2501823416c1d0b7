"""Tools in a chat: those of a file, and those of an MCP server, which is a real one."""

import json
import shlex
import sys

import pytest
from helpers.talker import talking

from rwkv_cli.cli.chat import commands
from rwkv_cli.cli.chat.input import Reader
from rwkv_cli.cli.chat.loop import Chat
from rwkv_cli.cli.chat.mcp_server import McpServer
from rwkv_cli.cli.chat.toolbox import MOST_ROUNDS, offer
from rwkv_cli.cli.chat.view import PlainView
from rwkv_cli.errors import RwkvError, UsageError
from rwkv_cli.sessions.autosave import AutosavedConversation
from rwkv_cli.sessions.conversation import Conversation
from rwkv_cli.text.tool_calls.tools import Tool

SERVER = '''
from mcp.server.mcpserver import MCPServer

server = MCPServer("test")

@server.tool()
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return f"the sum is {a + b}"

@server.tool()
def fail() -> str:
    raise RuntimeError("out of paper")

server.run("stdio")
'''
CALL = '```json\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n```'
RESULT = "Function output:\nthe sum is 5"


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    path = tmp_path_factory.mktemp("mcp") / "server.py"
    path.write_text(SERVER)
    return shlex.join([sys.executable, str(path)])


@pytest.fixture(scope="module")
def server(command):
    server = McpServer(command)
    yield server
    server.close()


class Person(Reader):
    """Someone who says some lines."""

    def __init__(self, *lines):
        self.lines = list(lines)

    def read(self, default=""):  # noqa: ARG002
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)


def chat_of(script, reader, servers=(), tools=(), confirms=True):
    conversation = Conversation(talking(script, template="g1"), max_tokens=200)
    box = offer(conversation, tools, servers, confirms)
    session = AutosavedConversation(conversation)
    return Chat(session, reader, PlainView(), commands.dispatch, quiet=True, toolbox=box)


def test_a_server_tells_its_tools_and_answers(server):
    names = {tool.name: tool for tool in server.tools}
    assert names["add"].description == "Add two numbers."
    assert set(names["add"].parameters["properties"]) == {"a", "b"}
    assert server.call("add", {"a": 2, "b": 3}) == "the sum is 5"
    assert server.call("fail", {}).startswith("Error: ")
    assert server.call("add", {"a": "x"}).startswith("Error: ")


def test_a_server_that_is_none():
    for wrong in ("/no/such/program", f"{sys.executable} -c pass", '"'):
        with pytest.raises(UsageError) as caught:
            McpServer(wrong)
        assert "\n" not in str(caught.value)


def test_a_call_is_shown_confirmed_and_made(server, capsys):
    script = {"add 2 and 3\n\nAssistant:": CALL, RESULT + "\n\nAssistant:": "It is 5."}
    chat = chat_of(script, Person("add 2 and 3", "y"), [server])
    assert chat.run() == 0
    printed = capsys.readouterr()
    assert 'call add {"a": 2, "b": 3}' in printed.err
    assert "the sum is 5" in printed.err
    assert printed.out.endswith("It is 5.\n")
    assert [turn.user for turn in chat.conversation.turns] == ["add 2 and 3", RESULT]
    assert "- add(a: integer, b: integer): Add two numbers." in chat.conversation.system


@pytest.mark.parametrize("reply", [["n"], [""], []])
def test_a_call_that_is_not_confirmed_is_not_made(server, capsys, reply):
    chat = chat_of({"go\n\nAssistant:": CALL}, Person("go", *reply), [server])
    chat.run()
    assert "(not called)" in capsys.readouterr().err
    assert len(chat.conversation.turns) == 1


def test_calls_without_end_are_stopped(server, capsys):
    chat = chat_of({"Assistant:": CALL}, Person("go"), [server], confirms=False)
    chat.run()
    assert len(chat.conversation.turns) == 1 + MOST_ROUNDS
    assert f"{MOST_ROUNDS} calls in a row" in capsys.readouterr().err


def test_a_tool_without_a_server_gets_its_result_from_the_user(capsys):
    script = {"go\n\nAssistant:": CALL, RESULT + "\n\nAssistant:": "It is 5."}
    chat = chat_of(script, Person("go", "/tool", "/tool the sum is 5"), tools=[Tool("add")])
    chat.run()
    printed = capsys.readouterr()
    assert "/tool RESULT" in printed.err
    assert printed.out.endswith("It is 5.\n")


def test_another_system_prompt_keeps_the_tools():
    chat = chat_of({}, Person("/system Be brief."), tools=[Tool("add")])
    chat.run()
    assert chat.conversation.system.startswith("Be brief.\nTools:\n- add()")


def test_tools_come_before_the_conversation_begins(server):
    conversation = Conversation(talking(template="g1"), max_tokens=5)
    for _ in conversation.ask("hi"):
        pass
    with pytest.raises(UsageError, match="began without these tools"):
        offer(conversation, [Tool("add")], [], True)
    with pytest.raises(UsageError, match="two tools named add"):
        offer(Conversation(talking(template="g1")), [Tool("add")], [server], True)


def test_the_command_line(rwkv, command, tmp_path):
    (tmp_path / "t.json").write_text(json.dumps([{"name": "now"}]))
    options = ("--template", "g1", "-n", 3, "--mcp", command, "--tools", tmp_path / "t.json", "--yes")
    result = rwkv("chat", *options, stdin=b"hello\n/show\n")
    assert result.code == 0
    for tool in ("- now()", "- add(a: integer, b: integer)", "- fail()"):
        assert tool in result.err
    assert "--yes needs --mcp" in rwkv("chat", "--yes", stdin=b"").sentence
    failed = rwkv("chat", "--mcp", "/no/such/program", stdin=b"")
    assert failed.code == 2
    assert "/no/such/program" in failed.sentence


def test_a_server_that_has_ended(command):
    server = McpServer(command)
    assert server.call("nothing", {}).startswith("Error: ")
    server.close()
    with pytest.raises(RwkvError, match="has ended"):
        server.call("add", {"a": 1, "b": 2})
