"""The chat templates that folders and GGUF files bring; they are found here, and never run."""

from __future__ import annotations

from pathlib import Path

from rwkv_cli.errors import CheckpointError
from rwkv_cli.files.checkpoints.base import ChatTemplate
from rwkv_cli.files.checkpoints.small_files import read_json, read_limited

_FILE, _SETTINGS, _FIELD = "chat_template.jinja", "tokenizer_config.json", "chat_template"
_KEY = "tokenizer.chat_template"
_DEFAULT = "default"  # among several templates, for tools or for retrieval
_MAX_BYTES = 64 << 10


def template_of_folder(folder: Path) -> ChatTemplate | None:
    """The template of a Hugging Face folder, from a file of its own or from the settings of its tokenizer.

    Raises CheckpointError for one that is damaged or too large.
    """
    file = folder / _FILE
    if file.is_file():
        return _template(file, read_limited(file, _MAX_BYTES, "chat template"), _FILE)
    settings = folder / _SETTINGS
    if not settings.is_file():
        return None
    value = read_json(settings).get(_FIELD)
    if isinstance(value, list):
        value = _default(settings, value)
    return None if value is None else _template(settings, value, _SETTINGS)


def template_of_keys(path: Path, keys: dict[str, object]) -> ChatTemplate | None:
    """The template in the keys of a GGUF file. Raises CheckpointError for one that is damaged or too large."""
    value = keys.get(_KEY)
    return None if value is None else _template(path, value, _KEY)


def _default(path: Path, templates: list[object]) -> object:
    """The one of several named templates that is meant for conversations, or None."""
    for entry in templates:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or "template" not in entry:
            raise CheckpointError(f"{path} has a damaged chat template: get it again")
        if entry["name"] == _DEFAULT:
            return entry["template"] or ""
    return None


def _template(path: Path, value: object, origin: str) -> ChatTemplate | None:
    """A template that is text; None for an empty one."""
    try:
        if not isinstance(value, str | bytes):
            raise TypeError
        data = value.encode() if isinstance(value, str) else value
        text = data.decode()
    except (TypeError, UnicodeError):
        raise CheckpointError(f"{path} has a damaged chat template: it is not text; get it again") from None
    if len(data) > _MAX_BYTES:
        raise CheckpointError(
            f"{path} has a chat template of {len(data):,} bytes; at most {_MAX_BYTES:,} are read: get another one"
        )
    return ChatTemplate(text, origin) if text.strip() else None
