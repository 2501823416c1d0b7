"""A server that speaks the protocol of the Hugging Face hub, and fails in the ways that networks do.

The hub answers HEAD and GET of /OWNER/REPO/resolve/REVISION/FILE and /api/models/OWNER/REPO[/revision/REVISION], below
`prefix`. Large files are redirected to a second server, the storage, which supports ranges; small ones are sent at
once. With `xet`, large files are also in a Xet storage, which is a folder. `faults` are used up, one by each response
with content; `refusals`, one by each request for metadata.

`files` is the main branch of each repository, at `commit`. Any other revision shows the same files, unless the
repository is in `history`: then a revision is main, the commit that main is at, or one that is listed there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


@dataclass
class Fault:
    """What goes wrong with one response; by default nothing."""

    cut_after: int | None = None  # bytes of the body, then the connection breaks
    status: int | None = None  # instead of a body
    headers: dict[str, str] = field(default_factory=dict)
    corrupt: bool = False  # the first byte is flipped
    extend: bytes = b""  # appended to the body
    trickle: float = 0.0  # seconds between pieces of 1000 bytes
    stall: float = 0.0  # seconds before the body
    no_ranges: bool = False  # the Range header is ignored
    wrong_range: bool = False  # Content-Range names another part than was asked for
    then: Callable[[], None] | None = None  # called after the response


class Hub:
    """Repositories, and how to fail: change the attributes of a running hub."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.plain: dict[str, bytes] = {}  # at /plain/NAME, as of a server that is not a hub
        self.commit = COMMIT
        self.history: dict[str, dict[str, dict[str, bytes]]] = {}  # repository, revision -> files
        self.prefix = ""  # of all paths, as of a hub behind a proxy
        self.listing_opens: threading.Event | None = None  # that a list of files waits for
        self.listing_body: bytes | None = None  # in place of a list of files
        self.token: str | None = None  # required for access
        self.faults: deque[Fault] = deque()
        self.refusals: deque[Fault] = deque()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.sent = 0  # bytes of bodies
        self.with_checksums = True
        self.with_lengths = True  # without, only the end of the connection ends a file
        self.head_is_refused = False
        self.xet: Path | None = None  # the folder of the Xet storage, if there is one
        self.xet_hashes: dict[bytes, str] = {}  # by content
        self.xet_is_down = False
        self.lock = threading.Lock()
        self.hub = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, _HubHandler))
        self.storage = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, _StorageHandler))
        for server in (self.hub, self.storage):
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        """The address of the hub."""
        return f"http://127.0.0.1:{self.hub.server_port}{self.prefix}"

    @property
    def storage_address(self) -> str:
        """The address of the server that large files are redirected to."""
        return f"http://127.0.0.1:{self.storage.server_port}"

    def tree(self, repository: str, revision: str) -> dict[str, bytes] | None:
        """The files of a repository at a revision; None if there is no such revision."""
        if repository not in self.history or revision in ("main", self.commit):
            return self.files[repository]
        return self.history[repository].get(revision)

    def push(self, repository: str, commit: str, files: dict[str, bytes]) -> None:
        """Make these the files of the main branch, at a new commit; the commit before keeps its own."""
        self.history.setdefault(repository, {})[self.commit] = self.files.get(repository, {})
        self.files[repository], self.commit = files, commit

    def close(self) -> None:
        """Stop both servers."""
        for server in (self.hub, self.storage):
            server.shutdown()
            server.server_close()

    def store_in_xet(self, data: bytes) -> None:
        """Put a file into the Xet storage."""
        import hf_xet  # type: ignore[import-untyped]  # it ships without types

        with hf_xet.XetSession().new_upload_commit(endpoint=f"local://{self.xet}") as commit:
            upload = commit.start_upload_bytes(data)
        self.xet_hashes[data] = upload.result().xet_info.hash

    def listings(self) -> list[str]:
        """The paths of the requests for lists of files."""
        return [path for method, path, _ in self.requests if method == "GET" and "/api/models/" in path]

    def gets(self) -> list[tuple[str, str, dict[str, str]]]:
        """The requests for contents."""
        return [request for request in self.requests if request[0] == "GET" and "/lfs/" in request[1]]


def _handler(hub: Hub, base: type[_Handler]) -> type[_Handler]:
    return type(base.__name__, (base,), {"hub": hub})


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client has gone
            super().handle()

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def _handle(self) -> None:
        with self.hub.lock:
            self.hub.requests.append((self.command, self.path, dict(self.headers)))
        try:
            self.answer(unquote(urlsplit(self.path).path))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def answer(self, path: str) -> None:
        """Answer a request for a decoded path, without its query."""
        raise NotImplementedError

    def refused(self, queue: deque[Fault]) -> bool:
        """Take the next fault; whether it has answered the request."""
        fault = queue.popleft() if queue else Fault()
        time.sleep(fault.stall)
        if fault.status:
            self.reply(fault.status, fault.headers)
        return fault.status is not None

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        """Send a whole response, without faults."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def content(self, data: bytes, etag: str | None, more: dict[str, str] | None = None) -> None:
        """Send a file or a part of it, with the next fault."""
        with self.hub.lock:
            fault = self.hub.faults.popleft() if self.hub.faults and self.command == "GET" else Fault()
        time.sleep(fault.stall)
        if fault.status:
            self.reply(fault.status, fault.headers)
            return
        start, status = self._start(etag, fault)
        if start >= len(data) > 0:
            self.reply(416, {"Content-Range": f"bytes */{len(data)}"})
            return
        if fault.corrupt:
            data = bytes([data[0] ^ 1]) + data[1:]
        body = data[start:] + fault.extend
        headers = {
            "Content-Length": str(len(body)),
            "Accept-Ranges": "bytes",
            **(more or {}),
            **fault.headers,
        }
        if etag:
            headers["ETag"] = etag
        if not self.hub.with_lengths:
            del headers["Content-Length"]
            self.close_connection = True
        if status == 206:
            shown = start + 1 if fault.wrong_range else start
            headers["Content-Range"] = f"bytes {shown}-{len(data) - 1}/{len(data)}"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._send(body, fault)
        if fault.then:
            fault.then()

    def _start(self, etag: str | None, fault: Fault) -> tuple[int, int]:
        """The first byte to send, and the status: 206 for a range, 200 for the whole file."""
        asked = self.headers.get("Range", "")
        condition = self.headers.get("If-Range")
        if not asked.startswith("bytes=") or fault.no_ranges or (condition and condition != etag):
            return 0, 200
        return int(asked.removeprefix("bytes=").split("-")[0]), 206

    def _send(self, body: bytes, fault: Fault) -> None:
        end = len(body) if fault.cut_after is None else min(fault.cut_after, len(body))
        step = 1000 if fault.trickle else 1 << 16
        for begin in range(0, end, step):
            piece = body[begin : min(begin + step, end)]
            self.wfile.write(piece)
            self.wfile.flush()
            with self.hub.lock:
                self.hub.sent += len(piece)
            time.sleep(fault.trickle)
        if end < len(body):
            self.close_connection = True


class _HubHandler(_Handler):
    def answer(self, path: str) -> None:
        hub = self.hub
        if not path.startswith(f"{hub.prefix}/"):
            self.reply(404, {})
            return
        path = path.removeprefix(hub.prefix)
        if path.startswith("/plain/"):
            self._plain(path.removeprefix("/plain/"))
            return
        if self.refused(hub.refusals):
            return
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.reply(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
            return
        if path.startswith("/xet-token"):
            self._grant()
            return
        if path.startswith("/api/models/"):
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            self._describe(f"{owner}/{name}", rest[1] if rest else "main")
            return
        if "/resolve/" not in path:  # other parts of the hub's API
            self.reply(404, {})
            return
        owner, name, _, revision, *parts = path.strip("/").split("/")
        files = self._tree(f"{owner}/{name}", revision)
        file = "/".join(parts)
        if files is None:
            return
        if file not in files:
            self.reply(404, {"X-Error-Code": "EntryNotFound"})
        else:
            self._resolve(f"{owner}/{name}", revision, file, files[file])

    def _tree(self, repository: str, revision: str) -> dict[str, bytes] | None:
        """The files at a revision; where there are none, the request is answered."""
        if repository not in self.hub.files:
            self.reply(404, {"X-Error-Code": "RepoNotFound"})
            return None
        files = self.hub.tree(repository, revision)
        if files is None:
            self.reply(404, {"X-Error-Code": "RevisionNotFound"})
        return files

    def _commit(self, repository: str, revision: str) -> str:
        return revision if revision in self.hub.history.get(repository, {}) else self.hub.commit

    def _resolve(self, repository: str, revision: str, file: str, data: bytes) -> None:
        headers = {"X-Repo-Commit": self._commit(repository, revision)}
        if len(data) < 5000:  # stored in git, not LFS: its etag is the hash of a blob
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            self.content(data, f'"{blob}"', headers)
            return
        digest = hashlib.sha256(data).hexdigest()
        headers |= {
            "X-Linked-Size": str(len(data)),
            "Location": f"{self.hub.storage_address}/lfs/{repository}/{revision}/{file}",
        }
        headers["X-Linked-Etag"] = f'"{digest}"' if self.hub.with_checksums else '"v1"'
        if not self.hub.with_lengths:
            del headers["X-Linked-Size"]
        if data in self.hub.xet_hashes:
            headers |= {
                "X-Xet-Hash": self.hub.xet_hashes[data],
                "X-Xet-Refresh-Route": f"{self.hub.endpoint}/xet-token",
            }
        self.reply(302, headers)

    def _grant(self) -> None:
        """An access token for the Xet storage."""
        if self.hub.xet_is_down:
            self.reply(404, {})
            return
        grant = {"casUrl": f"local://{self.hub.xet}", "accessToken": "x", "exp": int(time.time()) + 3600}
        self.reply(200, {"Content-Type": "application/json"}, json.dumps(grant).encode())

    def _describe(self, repository: str, revision: str) -> None:
        if self.hub.listing_opens:
            self.hub.listing_opens.wait()
        files = self._tree(repository, revision)
        if files is None:
            return
        siblings: list[dict[str, object]] = [{"rfilename": name} for name in files]
        if "blobs=" in self.path:
            siblings = [each | {"size": len(files[str(each["rfilename"])])} for each in siblings]
        about = {"id": repository, "sha": self._commit(repository, revision), "siblings": siblings}
        body = json.dumps(about).encode() if self.hub.listing_body is None else self.hub.listing_body
        self.reply(200, {"Content-Type": "application/json"}, body)

    def _plain(self, name: str) -> None:
        if self.command == "HEAD" and self.hub.head_is_refused:
            self.reply(403, {})
        elif name not in self.hub.plain:
            self.reply(404, {})
        else:
            data = self.hub.plain[name]
            etag = f'"{hashlib.md5(data).hexdigest()}"' if self.hub.with_checksums else None
            self.content(data, etag)


class _StorageHandler(_Handler):
    def answer(self, path: str) -> None:
        assert "Authorization" not in self.headers, "the token must not leave the hub"
        _, _, owner, name, revision, *parts = path.split("/")
        files = self.hub.tree(f"{owner}/{name}", revision)
        assert files is not None
        data = files["/".join(parts)]
        self.content(data, f'"{hashlib.md5(data).hexdigest()}"')
