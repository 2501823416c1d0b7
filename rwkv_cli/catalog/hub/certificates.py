"""The certificates that servers are checked by: the system's, or those that the environment names.

    SSL_CERT_FILE, SSL_CERT_DIR         of OpenSSL; a folder has names made of hashes, as `openssl rehash` makes them
    REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE  what people set for pip, curl and others: a file, or such a folder; they count
                                        where neither of the first two is set

OpenSSL passes over a folder that is not there or that has no such names, and then trusts nobody; here that is an error.
"""

from __future__ import annotations

import errno
import os
import re
import ssl
from collections.abc import Sequence
from pathlib import Path

import httpx2

from rwkv_cli.errors import UsageError, literal

_FOLDERS = "SSL_CERT_DIR"
_VARIABLES = ("SSL_CERT_FILE", _FOLDERS, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_HASHED = re.compile(r"[0-9a-fA-F]{8}\.[0-9]+")


def variable() -> str | None:
    """The variable that names the certificates; None for those of the system. An empty one counts as not set."""
    return next((name for name in _VARIABLES if os.environ.get(name)), None)


def context() -> ssl.SSLContext:
    """What connections check servers by. Raises OSError, of which `unreadable` makes a sentence."""
    name = variable()
    if name is None:
        return httpx2.create_ssl_context(trust_env=False)
    value = os.environ[name]
    if name == _FOLDERS:
        return _from_folders(value.split(os.pathsep))
    if name != "SSL_CERT_FILE" and Path(value).is_dir():
        return _from_folders([value])
    return ssl.create_default_context(cafile=value)


def unreadable(error: OSError) -> UsageError:
    """The error for certificates that cannot be read, which names the variable."""
    name = variable()
    what = f"the certificates of {name}={os.environ[name][:120]!r}" if name else "the system's certificates"
    reason = "there are none in it" if isinstance(error, ssl.SSLError) else (error.strerror or str(error))
    kind = "folder" if name == _FOLDERS else "file"
    hint = f": unset {name}, or set it to the {kind} of your certificates" if name else ""
    return UsageError(f"{literal(what)} cannot be read ({reason.lower()}){hint}")


def _from_folders(folders: Sequence[str]) -> ssl.SSLContext:
    """The certificates of those folders that there are. Raises OSError where there is nothing in any of them."""
    readable = [folder for folder in folders if Path(folder).is_dir()]
    found = [path for folder in readable or folders[:1] for path in Path(folder).iterdir()]
    if not any(_HASHED.fullmatch(path.name) for path in found):
        raise OSError(errno.ENOENT, "no names in it that `openssl rehash` makes")
    return ssl.create_default_context(capath=os.pathsep.join(readable))
