"""The models that are served: known by name, loaded when one is asked for, and let go within a limit of memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rwkv_cli import model as models
from rwkv_cli import paths
from rwkv_cli.catalog import model_store, registry
from rwkv_cli.engine.backends import registry as backends
from rwkv_cli.errors import MissingModelError, RwkvError
from rwkv_cli.reporting import Reporter, did_you_mean
from rwkv_cli.server.http import ApiError
from rwkv_cli.server.settings import ServerSettings
from rwkv_cli.server.turn_cache import TurnCache
from rwkv_cli.server.workers import Workers
from rwkv_cli.sessions import state_file, state_store
from rwkv_cli.sessions.prompt_cache import PromptCache
from rwkv_cli.text.template import Template
from rwkv_cli.text.templates import for_chat

_LAST_SECONDS = 10
Log = Callable[[str], None]


@dataclass(frozen=True)
class Known:
    """A model that can be asked for."""

    name: str
    path: Path
    state: str | None = None  # the tuned state that it begins with

    @property
    def created(self) -> int:
        """When its file was written, in seconds since 1970."""
        return int(self.path.stat().st_mtime)

    @property
    def size(self) -> int:
        """Bytes of its file, or of the files in its folder."""
        if self.path.is_dir():
            return sum(each.stat().st_size for each in self.path.iterdir() if each.is_file())
        return self.path.stat().st_size


class Loaded:
    """A model that is loaded, with what belongs to it while it runs."""

    def __init__(self, name: str, worker: Workers, turns: TurnCache, size: int) -> None:
        self.name, self.worker, self.turns, self.size = name, worker, turns, size
        self.model = worker.model
        self.template: Template = for_chat(worker.model.template)
        self.prompts = PromptCache(worker.model)
        self.users = 0  # requests that are being answered
        self.loaded_at = self.used_at = time.time()

    def release(self) -> None:
        """A request is done with it."""
        self.users -= 1
        self.used_at = time.time()


class Models:
    """The models by name. A client can name none that is not listed: no path, and nothing that is to be downloaded."""

    def __init__(self, settings: ServerSettings, reporter: Reporter, log: Log) -> None:
        """Raises what locating the default model raises."""
        self._settings, self._reporter, self._log = settings, reporter, log
        self._loaded = dict[Path, Loaded]()
        self._loading = asyncio.Lock()
        self._tasks = set[asyncio.Task[Loaded]]()  # which nobody else may refer to
        path = registry.locate(settings.model)
        self.default = Known(_name(settings.model, path), path)

    @property
    def loaded(self) -> list[Loaded]:
        """Those that are loaded now."""
        return [*self._loaded.values()]

    def listed(self) -> list[Known]:
        """All that can be asked for, the default one first; tuned states among them, each under its own name."""
        found = self._models()
        for known in self._tuned(found):
            found.setdefault(known.name, known)
        return [*found.values()]

    def _models(self) -> dict[str, Known]:
        """The models by name, without tuned states."""
        found = {self.default.name: self.default}
        for stored in model_store.listed():
            found.setdefault(stored.name, Known(stored.name, stored.path))
        found.setdefault(registry.DEFAULT, Known(registry.DEFAULT, paths.EMBEDDED_MODEL))
        return found

    def _tuned(self, found: dict[str, Known]) -> Iterator[Known]:
        """The tuned states, for those of the models that they were made for."""
        for name in state_store.names():
            if known := self._begun_with(name, found):
                yield known

    @staticmethod
    def _begun_with(state: str, found: dict[str, Known]) -> Known | None:
        """A model that begins with a state, if that was tuned for one that is there."""
        try:
            summary = state_file.peek(state_store.find(state))
        except RwkvError:
            return None
        location = summary.model.location
        base = next((each for each in found.values() if location in (each.name, str(each.path))), None)
        is_tuned = not (summary.tokens or summary.has_conversation)
        return Known(state, base.path, state) if base and is_tuned else None

    def find(self, name: str | None) -> Known:
        """The model of a name, None for the default one. Raises ApiError 404 with the nearest names."""
        wanted = (name or self.default.name).strip().removesuffix(":latest")
        models = self._models()
        by_case = {each.casefold(): known for each, known in models.items()}
        if known := by_case.get(wanted.casefold()):
            return known
        if wanted in state_store.names() and (known := self._begun_with(wanted, models)):
            return known
        if "/" not in wanted and "\\" not in wanted and (path := _pulled(wanted)):
            return Known(wanted, path)
        names = [each.name for each in self.listed()]
        hint = did_you_mean(wanted[:100], names) or f"; there are {', '.join(names[:10])}"
        raise ApiError(404, f"unknown model {wanted[:100]!r}{hint}", "model_not_found", param="model")

    async def acquire(self, name: str | None, *, queues: bool = False) -> tuple[Known, Loaded]:
        """A model, which is loaded if need be and stays so until it is released as often.

        Raises ApiError for an unknown one, RwkvError if it cannot be loaded; for a request that `queues` for an
        answer, ApiError 429 where as many wait as the server lets wait.
        """
        known = self.find(name)
        task = asyncio.create_task(self._acquired(known, queues))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return known, await asyncio.shield(task)
        except asyncio.CancelledError:  # the client went away: others may wait for the same model
            task.add_done_callback(_release)
            raise

    async def _acquired(self, known: Known, queues: bool) -> Loaded:
        async with self._loading:
            loaded = self._loaded.get(known.path)
            if loaded is None:
                await self._make_room(known.size)
                since = time.perf_counter()
                loaded = await asyncio.to_thread(self._load, known)
                self._loaded[known.path] = loaded
                seconds = time.perf_counter() - since
                self._log(f"loaded {loaded.name} in {seconds:.1f} s: {loaded.worker.descriptions}")
            if queues:
                self._check_queue(loaded)
            loaded.users += 1
            return loaded

    def _check_queue(self, loaded: Loaded) -> None:
        """Raise ApiError 429 if no more requests may wait. One that is refused has never been a user of the model, so
        that of many that come at once those get in for which there is room."""
        waiting, most = loaded.users - loaded.worker.slots, self._settings.max_queue
        if waiting >= most:
            message = f"{most} requests wait for {loaded.name} already: try again later"
            raise ApiError(429, message, "queue_full", retry_after=max(1, min(60, waiting // 8)))

    def _load(self, known: Known) -> Loaded:
        settings = self._settings
        devices = backends.expand(settings.device)
        threads = backends.threads_each(settings.threads, devices)
        replicas = [
            models.load(known.path, device, threads=threads, reporter=self._reporter) for device in devices
        ]
        turns = TurnCache(replicas[0], settings.state_bytes, settings.disk_bytes)
        name = next((each.name for each in self._models().values() if each.path == known.path), known.name)
        return Loaded(name, Workers(replicas, settings.parallel), turns, known.size * len(replicas))

    async def _make_room(self, size: int) -> None:
        """Unload those that were used least recently and are not in use, until there is room for `size` bytes."""
        idle = sorted((each for each in self.loaded if not each.users), key=lambda each: each.used_at)
        for loaded in idle:
            if sum(each.size for each in self.loaded) + size <= self._settings.model_bytes:
                break
            await self.unload(loaded)

    async def unload(self, loaded: Loaded) -> None:
        """Let a model go; its requests end with an error."""
        self._loaded = {path: each for path, each in self._loaded.items() if each is not loaded}
        await asyncio.to_thread(loaded.worker.stop)
        self._log(f"unloaded {loaded.name}")

    async def close(self) -> None:
        """Let all models go; requests that were cut off have a moment to save what was said."""
        until = time.monotonic() + _LAST_SECONDS
        while any(each.users for each in self.loaded) and time.monotonic() < until:
            await asyncio.sleep(0.01)
        for loaded in self.loaded:
            await self.unload(loaded)


def _release(task: asyncio.Task[Loaded]) -> None:
    """Release a model that nobody waited for."""
    if not task.cancelled() and not task.exception():
        task.result().release()


def _pulled(name: str) -> Path | None:
    """The file of a name that models.toml has, if it was pulled."""
    try:
        return registry.locate(name) if name.lower() in registry.entries() else None
    except (MissingModelError, RwkvError):
        return None


def _name(chosen: str | None, path: Path) -> str:
    """What the default model is called: as the user called it, or as its file is."""
    if path == paths.EMBEDDED_MODEL:
        return registry.DEFAULT
    if chosen and chosen.lower() in registry.entries():
        return chosen.lower()
    return path.name.removesuffix(".safetensors").removesuffix(".pth").removesuffix(".gguf")
