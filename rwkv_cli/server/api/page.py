"""The page at `/`, whose files are in `server/page`."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from rwkv_cli.server import page as _here
from rwkv_cli.server.http import ApiError

FOLDER = Path(_here.__file__).parent
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain",
}


async def index(_: Request) -> Response:
    """The page."""
    return _file("index.html")


async def file(request: Request) -> Response:
    """A file that it needs."""
    return _file(request.path_params["path"])


def _file(name: str) -> Response:
    path = FOLDER / name
    if (
        ".." in name
        or path.suffix not in _TYPES
        or not path.is_file()
        or not path.resolve().is_relative_to(FOLDER)
    ):
        raise ApiError(404, f"there is nothing at /page/{name[:100]}")
    return FileResponse(path, media_type=_TYPES[path.suffix], headers={"Cache-Control": "no-cache"})
