"""Where a command continues from, and where it saves: states, and the models that belong to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rwkv_cli import model as models
from rwkv_cli.catalog import registry
from rwkv_cli.errors import RwkvError, StateError, StorageError, UsageError
from rwkv_cli.model import Model
from rwkv_cli.reporting import Reporter, format_size
from rwkv_cli.sessions import state_file, state_store
from rwkv_cli.sessions.model_identity import identify_file
from rwkv_cli.sessions.state_file import SavedState
from rwkv_cli.text.template import Template


@dataclass
class Source:
    """A saved state, and where it was."""

    path: Path
    saved: SavedState


def open_state(name_or_path: str) -> Source:
    """Read a state, named or a file. Raises StateError."""
    path = state_store.find(name_or_path)
    return Source(path, state_file.load(path))


def check_folder(path: Path) -> None:
    """Raise StorageError, before the work, if the folder of a state to be written does not exist."""
    if path.parent != state_store.folder() and not path.parent.is_dir():
        raise StorageError(f"cannot write {path}: the folder {path.parent} does not exist")


def check_target(name_or_path: str, force: bool, source: Path | None = None) -> Path:
    """The file to write a state to. Raises, before the work, UsageError for a file that must not be replaced.

    A state is replaced if `force` is set, or if it is the `source` that was continued; other files never.
    """
    path = state_store.resolve(name_or_path)
    check_folder(path)
    if not path.exists() or (source and source.exists() and path.samefile(source)):
        return path
    if not (path.is_file() and state_file.is_state_file(path)):
        raise UsageError(f"{path} exists and is not a state: it is not replaced")
    if not force:
        raise UsageError(f"the state {name_or_path} exists already: use {{force}} to replace it")
    return path


def load_model(
    chosen: str | None,
    saved: SavedState | None,
    device: str,
    threads: int | None,
    reporter: Reporter,
    default: str | None = None,
    draft: str | None = None,
) -> Model:
    """The model of --model; without it, the one that made the state. Raises StateError where they do not fit.

    `default` is the model in the user's settings, which nobody chose for this state. `draft` is as for `model.load`.
    """
    if saved and chosen in (None, default):
        chosen = _model_of(saved, chosen)
    loaded = models.load(chosen, device, threads=threads, draft=draft, reporter=reporter)
    if saved and (warning := state_file.fit(saved, loaded)):
        reporter.note(warning)
    return loaded


def _model_of(saved: SavedState, default: str | None) -> str:
    """The model of a state: the user's default or the built-in one if it is that, otherwise the one at its location.

    The location comes last, since a file says it: another file must not be opened, and perhaps converted, where the
    user has chosen a model that fits.
    """
    for own in (default, registry.DEFAULT):
        if own and _weights(own) == saved.model.weights:
            return own
    location = saved.model.location
    if location in registry.entries() or _is_here(location):
        return location
    raise StateError(
        f"the model of this state, {saved.model.name}, is no longer at {location or 'a known location'}: "
        "give its new path with {model}"
    )


def _is_here(location: str) -> bool:
    """Whether a path that a file names may be used: a state from elsewhere must not have this machine call another."""
    return (
        Path(location).is_absolute() and not location.startswith(("//", "\\\\")) and Path(location).exists()
    )


def _weights(name: str) -> str | None:
    """The sha256 that identifies the weights of a model; None if it cannot be read."""
    try:
        return identify_file(registry.locate(name))[0].weights
    except (RwkvError, OSError):
        return None


def layout_for(template: Template | None, saved: SavedState | None, own: Template) -> Template:
    """The prompt template: the one that was asked for, that of the state, or the model's own."""
    return template or (saved.template if saved and saved.template else own)


def other_template(layout: Template, saved: SavedState | None, own: Template) -> str | None:
    """A sentence where a state continues in another template than it was read in, or than its model has now."""
    if saved is None or saved.template is None:
        return None
    if layout != saved.template:
        return f"the state was read in the template {saved.template.name}, and continues in {layout.name}"
    if layout != own:
        return f"the state continues in its own template {layout.name}; that of the model is {own.name}"
    return None


def text_of(
    layout: Template, prompt: str, system: str | None, think: str | None, saved: SavedState | None
) -> str:
    """The text of a prompt as `Model.encode_prompt` has it read."""
    if saved is None or saved.snapshot.logits is None:
        return layout.render(prompt, system, think)
    if not prompt:
        return ""
    return layout.continuation(prompt, think, after_document=saved.template is None)


def described(path: Path, saved: SavedState) -> str:
    """A line about a state that was written."""
    where = state_store.name_of(path) if path.parent == state_store.folder() else str(path)
    return f"{where}: {saved.snapshot.n_tokens:,} tokens of {saved.model.name}, {format_size(path.stat().st_size)}"
