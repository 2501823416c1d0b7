"""States as objects: /v1/states. They are those of `rwkv state`, in the same store."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from rwkv_cli.engine.generate import Ending
from rwkv_cli.engine.scheduler import Handle
from rwkv_cli.engine.scheduler import Request as Work
from rwkv_cli.errors import RwkvError, StateError, UsageError
from rwkv_cli.files.atomic import storage_error
from rwkv_cli.generation import Generation
from rwkv_cli.sampling_settings import SamplingSettings
from rwkv_cli.server.chat.answer import arriving, check_prompt
from rwkv_cli.server.chat.completion import plain_template
from rwkv_cli.server.chat.place import checked, exists
from rwkv_cli.server.http import ApiError, Fields, read_fields, while_connected
from rwkv_cli.server.loaded import Loaded
from rwkv_cli.server.service import Service, service_of
from rwkv_cli.server.worker import Options
from rwkv_cli.sessions import state_file, state_store
from rwkv_cli.sessions.state_file import SavedState
from rwkv_cli.sessions.transcript import Record
from rwkv_cli.text.thinking import split

T = TypeVar("T")


async def list_states(_: Request) -> Response:
    """All states in the store."""

    def found() -> list[dict[str, Any]]:
        states = list[dict[str, Any]]()
        for name in state_store.names():
            try:
                states.append(_described(name))
            except RwkvError as error:
                states.append({"id": name, "object": "state", "error": str(error)})
        return states

    return JSONResponse({"object": "list", "data": await asyncio.to_thread(found)})


async def create(request: Request) -> Response:
    """Read a text, and keep where the model stands after it."""
    fields = await read_fields(request)
    name, text = checked(_needed(fields, "name")), _needed(fields, "input")
    _check_free(name, fields)
    service = service_of(request)
    _, loaded = await service.models.acquire(fields.text("model"), queues=True)
    try:
        saved = await while_connected(request, _read(service, loaded, text))
    finally:
        loaded.release()
    await asyncio.to_thread(_save, name, saved)
    return JSONResponse(await asyncio.to_thread(_described, name), 201)


async def _read(service: Service, loaded: Loaded, text: str) -> SavedState:
    """The state after a document. Raises UsageError for an empty one."""
    model, template = loaded.model, plain_template(loaded.model.template)
    tokens = await asyncio.to_thread(model.encode_prompt, text, template)
    check_prompt(service.settings, len(tokens), "input")

    def generate(submit: Callable[[Work], Handle]) -> Generation:
        sampler = model.sampler(SamplingSettings(temperature=0))
        return Generation(submit(Work(tokens, sampler, Ending(max_tokens=1))), model.tokenizer)

    options = Options(keeps_prompt=True, beginnings=loaded.prompts.beginnings(tokens))
    job = await loaded.worker.submit(options, generate)
    try:
        async for _ in arriving(job, service.settings.timeout):
            pass
    finally:
        await asyncio.shield(job.cancel())
    assert job.prompt_end
    snapshot = replace(job.prompt_end, memory=None)
    return SavedState(snapshot, state_file.identify(model), text=text)


async def describe(request: Request) -> Response:
    """A state: what it is of, and what was said in it."""
    return JSONResponse(await asyncio.to_thread(_described, _named(request), whole=True))


async def rename(request: Request) -> Response:
    """Give a state another name."""
    fields, name = await read_fields(request), _named(request)
    new = checked(_needed(fields, "name"))
    if new.casefold() != name.casefold():
        _check_free(new, Fields({}))
    await asyncio.to_thread(state_store.rename, name, new)
    return JSONResponse(await asyncio.to_thread(_described, new))


async def fork(request: Request) -> Response:
    """Copy a state."""
    fields, name = await read_fields(request), _named(request)
    new = checked(_needed(fields, "name"))
    _check_free(new, fields)

    def copy() -> dict[str, Any]:
        _save(new, state_file.load(state_store.find(name)))
        return _described(new)

    return JSONResponse(await asyncio.to_thread(copy), 201)


async def delete(request: Request) -> Response:
    """Delete a state."""
    name = _named(request)
    await asyncio.to_thread(state_store.remove, name)
    return JSONResponse({"id": name, "object": "state", "deleted": True})


async def export(request: Request) -> Response:
    """The file of a state."""
    path = await asyncio.to_thread(state_store.find, _named(request))
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)


async def take_in(request: Request) -> Response:
    """Take in the file of a state, under a name of its own."""
    name = checked(request.path_params["name"])
    _check_free(name, Fields({"overwrite": request.query_params.get("overwrite") in ("true", "1")}))
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp))
    try:
        file = folder / "state.safetensors"
        with file.open("wb") as out:
            async for part in request.stream():
                out.write(part)
        saved = await asyncio.to_thread(_checked_file, file)
        await asyncio.to_thread(_save, name, saved)
    except OSError as error:
        raise storage_error(folder, error) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return JSONResponse(await asyncio.to_thread(_described, name), 201)


def _checked_file(file: Path) -> SavedState:
    """The state that was sent. Raises ApiError where it is none."""
    try:
        return state_file.load(file)
    except StateError as error:
        raise ApiError(400, str(error).replace(str(file), "the body of the request")) from None


# ----------------------------------------------------------------------------------------------------------- helpers


def _named(request: Request) -> str:
    """The existing state that a path names. Raises StateError if there is none."""
    name = checked(request.path_params["name"])
    state_store.find(name)
    return name


def _needed(fields: Fields, name: str) -> str:
    text = fields.text(name)
    if text is None:
        raise UsageError(f"{{{name}}} is missing")
    return text


def _check_free(name: str, fields: Fields) -> None:
    state_store.resolve(name)
    if exists(name) and not fields.flag("overwrite"):
        raise StateError(f"a state named {name} exists: choose another name, or set 'overwrite'")


def _save(name: str, saved: SavedState) -> None:
    path = state_store.resolve(name)
    state_store.prepare(path)
    with state_store.lock(path):
        state_store.save(path, saved)


def _described(name: str, *, whole: bool = False) -> dict[str, Any]:
    """A state as JSON; with `whole`, also the text or the turns in it."""
    path = state_store.find(name)
    summary = state_file.peek(path)
    described = {
        "id": state_store.name_of(path),
        "object": "state",
        "created": summary.created,
        "model": summary.model.name,
        "weight_type": summary.model.weight_type,
        "template": summary.template,
        "tokens": summary.tokens,
        "bytes": path.stat().st_size,
        "kind": "conversation" if summary.has_conversation else "document" if summary.tokens else "tuned",
    }
    return {**described, **_content(state_file.load(path))} if whole else described


def _content(saved: SavedState) -> dict[str, Any]:
    if saved.conversation is None:
        return {"text": saved.text}
    record = Record.from_json(saved.conversation, saved.text)
    messages = list[dict[str, Any]]()
    if record.system is not None:
        messages.append({"role": "system", "content": record.system})
    for turn in record.turns:
        thought, answer = split(turn.text, record.template, turn.think)
        messages.append({"role": "user", "content": turn.user})
        reply = {"role": "assistant", "content": answer}
        messages.append({**reply, "reasoning_content": thought} if thought else reply)
    return {"messages": messages, "text": record.start.text}
