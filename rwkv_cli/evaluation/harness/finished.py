"""Results that are kept in a file, so that a run that was interrupted continues where it ended.

A line of the file is a JSON object with a key and a result. The key is a digest of everything that the result depends
on; the file belongs to one model. Lines are appended as results come: a last line that is not whole is left out.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rwkv_cli.files.atomic import storage_error


class Finished:
    """Results by key. A context manager, which closes the file."""

    def __init__(self, path: Path, *, anew: bool = False) -> None:
        """`anew` forgets what is kept. Raises StorageError where the file cannot be written."""
        self._path = path
        self._results = {} if anew else _read(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A line of its own, also after one that is not whole.
            self._file: IO[str] = path.open("w" if anew else "a", encoding="utf-8")
            if self._file.tell():
                self._file.write("\n")
        except OSError as error:
            raise storage_error(path, error) from None

    def __enter__(self) -> Finished:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def get(self, key: str) -> Any:
        """The result under a key; None where there is none."""
        return self._results.get(key)

    def keep(self, key: str, result: Any) -> None:
        """Keep a result, which is anything but None that JSON can hold. Raises StorageError."""
        self._results[key] = result
        try:
            self._file.write(json.dumps({"key": key, "result": result}) + "\n")
            self._file.flush()
        except OSError as error:
            raise storage_error(self._path, error) from None


def key_of(*parts: Any) -> str:
    """The key of what JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    """The results in a file, those of whole lines; none where there is no file."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except OSError:
        return {}
    found = {}
    for line in text.splitlines():
        try:
            record = json.loads(line)
            found[str(record["key"])] = record["result"]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return found
