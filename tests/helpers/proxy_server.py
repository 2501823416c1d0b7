"""Proxies on 127.0.0.1, for HTTP and for SOCKS 5: they pass on what they get, and remember whom they were asked for."""

from __future__ import annotations

import contextlib
import http.client
import socket
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Asked:
    """A proxy: its port, and the hosts that it was asked for, with ports. With a login it wants user and password."""

    def __init__(self) -> None:
        self.port = 0
        self.hosts: list[str] = []
        self.login: tuple[str, str] | None = None


@contextlib.contextmanager
def serving(kind: type[socketserver.BaseRequestHandler]) -> Iterator[Asked]:
    """Run `HttpProxy`, `SocksProxy`, or what answers otherwise."""
    asked = Asked()
    handler = type(kind.__name__, (kind,), {"asked": asked})
    server = (ThreadingHTTPServer if issubclass(kind, HttpProxy) else socketserver.ThreadingTCPServer)(
        ("127.0.0.1", 0), handler
    )
    server.daemon_threads = True
    asked.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()


class HttpProxy(BaseHTTPRequestHandler):
    """Passes on GET and HEAD of plain addresses; with a login it refuses everything, tunnels too."""

    asked: Asked

    def do_GET(self) -> None:
        """Pass on a request, or refuse it."""
        self.asked.hosts.append(self.path.partition("://")[2].partition("/")[0] or self.path)
        if self.asked.login:
            self.send_response(407, "Proxy Authentication Required")
            self.send_header("Proxy-Authenticate", 'Basic realm="x"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        host, _, path = self.path.partition("://")[2].partition("/")
        server = http.client.HTTPConnection(host)
        server.request(self.command, f"/{path}", headers=dict(self.headers))
        answer = server.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        """The same without a body."""
        self.do_GET()

    def do_CONNECT(self) -> None:
        """Refuse a tunnel: there is a login, in all tests that ask for one."""
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class SocksProxy(socketserver.StreamRequestHandler):
    """RFC 1928 and 1929: CONNECT to names and IPv4 addresses, without a login or with one."""

    asked: Asked

    def handle(self) -> None:
        """Connect, and pass on what comes from both sides."""
        count = self.rfile.read(2)[1]
        offered = self.rfile.read(count)
        method = 2 if self.asked.login else 0
        if method not in offered:
            self.wfile.write(b"\x05\xff")
            return
        self.wfile.write(bytes([5, method]))
        if self.asked.login:
            self.rfile.read(1)
            given = tuple(self.rfile.read(self.rfile.read(1)[0]).decode() for _ in range(2))
            self.wfile.write(bytes([1, given != self.asked.login]))
            if given != self.asked.login:
                return
        kind = self.rfile.read(4)[3]
        size = self.rfile.read(1)[0] if kind == 3 else 4
        address = self.rfile.read(size)
        host = address.decode() if kind == 3 else socket.inet_ntoa(address)
        port = int.from_bytes(self.rfile.read(2), "big")
        self.asked.hosts.append(f"{host}:{port}")
        try:
            server = socket.create_connection(("127.0.0.1", port))
        except OSError:
            self.wfile.write(b"\x05\x05\0\x01" + bytes(6))
            return
        self.wfile.write(b"\x05\0\0\x01" + bytes(6))
        with server:
            back = threading.Thread(target=_copy, args=(server, self.connection), daemon=True)
            back.start()
            _copy(self.connection, server)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
