"""From a name to a model file in the store: download, check, quantize, in one go."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_cli.catalog import model_store, registry
from rwkv_cli.catalog.model_store import Stored
from rwkv_cli.catalog.newest import in_place_of, newest_of, remark_on_newer
from rwkv_cli.catalog.reference import Reference
from rwkv_cli.convert.conversion import convert_checkpoint, source_name
from rwkv_cli.convert.template_choice import ChosenTemplate, choose_template
from rwkv_cli.errors import CheckpointError, DownloadError
from rwkv_cli.evaluation import advice
from rwkv_cli.files.atomic import remove_leftovers, storage_error
from rwkv_cli.files.checkpoints import Checkpoint, open_checkpoint
from rwkv_cli.files.lock import locked
from rwkv_cli.files.model_file import is_usable
from rwkv_cli.files.weight_layouts import WeightType
from rwkv_cli.reporting import Reporter, default_reporter, format_size
from rwkv_cli.text.templates import get_template

if TYPE_CHECKING:
    from rwkv_cli.catalog.hub import Fetched, Remote

# Of a stored weight, with scales, and with what stays a float in a small model.
_BYTES_PER_WEIGHT = {"int8": 1.2, "int4": 0.8, "fp16": 2.1, "fp32": 4.1}
_PUBLISHED_BYTES = 2  # per weight in most published files


@dataclass(frozen=True)
class Pulled:
    """The result of a pull."""

    stored: Stored
    reference: Reference
    is_new: bool  # False if it was in the store already
    checked_by: str | None = None  # in words; None for a file without any checksum
    downloaded: int = 0  # bytes
    original: Path | None = None  # what was downloaded, if it was kept
    mirror: str | None = None  # that it came from


@dataclass(frozen=True)
class _Order:
    """How a model is wanted."""

    weight_type: WeightType
    keep: bool
    force: bool
    sha256: str | None
    reporter: Reporter


def pull(
    wanted: str,
    weight_type: WeightType = "int8",
    *,
    keep: bool = False,
    force: bool = False,
    newest: bool = False,
    sha256: str | None = None,
    reporter: Reporter | None = None,
) -> Pulled:
    """Install a published model in the store; one that is there already is left as it is, unless `force` is set.

    `keep` moves the download into the cache of the hub instead of removing it. `newest` takes the newest model of the
    same size that the hub has now. `sha256` is what the user expects of the file. Raises DownloadError,
    VerificationError, CheckpointError, UsageError and StorageError; the store never holds an incomplete file.
    """
    reporter = reporter or default_reporter()
    order = _Order(weight_type, keep, force, sha256, reporter)
    reference = registry.resolve(wanted)
    if newest:
        return _install(newest_of(reference, reporter), order)
    try:
        return _install(reference, order, wanted)
    except DownloadError as error:
        other = None if sha256 else in_place_of(reference, error, reporter)
        if other is None:
            raise
    return _install(other, order)


def _install(reference: Reference, order: _Order, wanted: str | None = None) -> Pulled:
    """Bring a model into the store, if it is not there. A newer one is remarked on, as what `wanted` could be."""
    name = f"{reference.name}-{order.weight_type}"
    stored = Stored(name, model_store.path_of(name))
    with _locked(stored.path, order.reporter):
        if stored.path.is_file() and not order.force and is_usable(stored.path):
            return Pulled(stored, reference, is_new=False)
        return _pull(reference, stored, order, wanted)


def _pull(reference: Reference, stored: Stored, order: _Order, wanted: str | None) -> Pulled:
    from rwkv_cli.catalog import hub

    reporter, weight_type = order.reporter, order.weight_type

    def ready(remote: Remote) -> None:
        _require_space(remote, stored.path, weight_type)
        if remote.reference is reference:  # otherwise a mirror, which was mentioned
            is_online = bool(remote.files[0].url)
            if wanted and is_online and (remark := remark_on_newer(reference, wanted)):
                reporter.note(remark)
            size = f" ({format_size(remote.size)})" if remote.size else ""
            reporter.note(f"downloading {reference.text}{size}")

    fetched = hub.obtain(reference, order.sha256, ready, reporter.downloading, reporter.note)
    if fetched.checked_by is None:
        reporter.note("no published checksum for this file; only its size was verified")
    if order.keep:
        fetched = hub.keep(fetched, reporter.note)
    remote = fetched.remote
    if fetched.mirror:  # which holds the very same file
        remote = replace(remote, reference=reference, commit=None)
    try:
        _convert(remote, fetched, stored.path, weight_type, reporter)
    except CheckpointError:
        if not order.keep:
            hub.discard(fetched)  # the right file, but not a model that can be converted
        raise
    if not order.keep:
        hub.discard(fetched)
    return Pulled(
        stored,
        reference,
        True,
        fetched.checked_by,
        fetched.downloaded,
        fetched.path if fetched.is_present() else None,
        fetched.mirror,
    )


def _convert(
    remote: Remote, fetched: Fetched, target: Path, weight_type: WeightType, reporter: Reporter
) -> None:
    """Quantize what was fetched, into the store."""
    reference, entry = remote.reference, remote.reference.entry
    with open_checkpoint(fetched.path) as checkpoint:
        if warning := advice.warning(checkpoint.config, weight_type):
            reporter.note(warning)
        published = _published_name(reference, checkpoint)
        if entry and entry.template:
            chosen = ChosenTemplate(get_template(entry.template), f"models.toml, [{entry.name}]")
        else:
            chosen = choose_template(checkpoint, published)
        source = {
            "name": published,
            "format": checkpoint.format,
            "origin": reference.text,
            "pulled": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "checked_by": fetched.checked_by or "nothing but the size",
        }
        if fetched.mirror:
            source["mirror"] = fetched.mirror
        if remote.commit:
            source["commit"] = remote.commit
        if entry:
            source["registry"] = entry.name
            source |= {"license": entry.license} if entry.license else {}
        if len(remote.files) == 1 and remote.files[0].sha256:
            source["sha256"] = remote.files[0].sha256  # checked a moment ago
        convert_checkpoint(
            checkpoint,
            target,
            weight_type,
            reporter,
            chosen=chosen,
            sampling=entry.sampling if entry else None,
            source=source,
        )


def _published_name(reference: Reference, checkpoint: Checkpoint) -> str:
    """The publisher's name for it; the folder that it was downloaded to is named by a commit."""
    if reference.repository and not reference.file:
        return reference.repository.partition("/")[2]
    return source_name(checkpoint)


def _require_space(remote: Remote, target: Path, weight_type: WeightType) -> None:
    """Refuse what cannot fit, before it is downloaded."""
    from rwkv_cli.catalog.hub.download import folder_of, missing_bytes, require_space

    missing = missing_bytes(remote)
    weights = (remote.size or 0) / _PUBLISHED_BYTES
    entry = remote.reference.entry
    if entry and entry.parameters:
        weights = entry.parameters
        missing = missing or (0 if remote.size is not None else entry.parameters * _PUBLISHED_BYTES)
    made = int(weights * _BYTES_PER_WEIGHT[weight_type])
    folder = folder_of(remote)
    if _device(folder) == _device(target):
        require_space(folder, missing + made, "the download and the model")
    else:
        require_space(folder, missing, "the download")
        require_space(target.parent, made, "the model")


def _device(path: Path) -> int | None:
    """The disk that a path is on, or would be."""
    for folder in (path, *path.parents):
        with contextlib.suppress(OSError):
            return folder.stat().st_dev
    return None


@contextlib.contextmanager
def _locked(target: Path, reporter: Reporter) -> Iterator[None]:
    """Held during a pull: a second one of the same model waits, and then finds it there."""
    with contextlib.ExitStack() as held:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = locked(
                target.with_name(f".{target.stem}.lock"),
                wait=lambda: reporter.note(f"another program is pulling {target.stem}: waiting for it"),
            )
            held.enter_context(lock)
        except OSError as error:
            raise storage_error(target, error) from None
        remove_leftovers(target.parent)
        yield
