"""Downloads: the only package that talks to the network.

    discovery  what a reference stands for: files, sizes and checksums, as the hub, a web server or the cache has them
    answers    what servers send, read with limits; a web page is none of the files that are asked for
    listing    what a repository holds now, in one request
    selection  which files of a repository make up its model
    remote     the files of a model on a server, and what else is known of them: checksums that have to agree
    download   `fetch` brings the files here and verifies them, `keep` and `discard` decide what becomes of them
    mirrors    `obtain` finds and fetches a model, from the first source that delivers it
    transfer   one file over a connection that may break at any time; xet is the faster way for files that have it
    cache      the cache that all programs for the hub share
    client     the client that all of these share, once what it takes from the environment is checked
    certificates  what servers are checked by
    proxies    the proxy of each request, and a transport that uses no other
    failures   sentences for what goes wrong, and what is worth another attempt; unreachable is a part of it

huggingface_hub does what its public API offers: metadata, tokens and headers, proxies and offline mode, and the shared
cache with its links, references and locks. These parts are our own, for files of the hub too:

- The transfer over HTTP. That of huggingface_hub (2.4) starts at zero after an interruption, appends the rest of a file
  that has changed meanwhile, does not check which range it gets, does not retry after errors 5xx or a reset connection,
  waits as long as a server says (hours), and gives the file its final name before anyone has compared its checksum.
- The order: a download is verified in a folder of ours (HF_ASSETS_CACHE, which exists for this) before it is used, and
  enters the shared cache only when it is kept. So nothing unverified is ever visible there, and removing a download
  cannot touch what other programs have put there.
- The checksum itself, from models.toml, the user or the hub: huggingface_hub compares sizes only.
- Retries of requests for metadata: huggingface_hub reports them to the log alone, and waits for hours if told so.
- Addresses outside the hub, which it does not know.
- The messages.

Nothing here knows what a model is, except `selection`.
"""

from __future__ import annotations

from rwkv_cli.catalog.hub import client  # noqa: F401  # before huggingface_hub is imported
from rwkv_cli.catalog.hub.discovery import find
from rwkv_cli.catalog.hub.download import Fetched, discard, fetch, keep
from rwkv_cli.catalog.hub.failures import GoneError
from rwkv_cli.catalog.hub.listing import Listing, contents_of, glance
from rwkv_cli.catalog.hub.mirrors import obtain
from rwkv_cli.catalog.hub.remote import Remote, RemoteFile

__all__ = [
    "Fetched",
    "GoneError",
    "Listing",
    "Remote",
    "RemoteFile",
    "contents_of",
    "discard",
    "fetch",
    "find",
    "glance",
    "keep",
    "obtain",
]
