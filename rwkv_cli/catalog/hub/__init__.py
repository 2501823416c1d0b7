"""Downloads: the only package that talks to the network.

    remote     what is to be fetched, as the hub or a web server describes it
    transfer   one file over a connection that may break at any time
    places     where downloads lie: in the cache that all programs for the hub share, or in ours
    failures   sentences for what goes wrong on the way

`find` asks the hub, `fetch` brings the files here and checks them, `discard` removes them again. Nothing here knows
what a model is, but for `remote`, which chooses the files of one in a repository.
"""

from __future__ import annotations

from rwkv_cli.catalog.hub.cache import Fetched, discard, fetch, keep
from rwkv_cli.catalog.hub.remote import Remote, RemoteFile, find

__all__ = ["Fetched", "Remote", "RemoteFile", "discard", "fetch", "find", "keep"]
