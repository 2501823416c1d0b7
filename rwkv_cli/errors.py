"""Every failure that a user can meet, each with one clear sentence.

    RwkvError                     exit code 1
    ├── UsageError                exit code 2: an invalid option, argument or setting
    ├── CheckpointError           a published checkpoint cannot be read: missing, truncated, hostile, wrong shape
    │   ├── UnsupportedModelError it can be read, but it is not an RWKV-7 model
    │   └── MissingModelError     a model that is known by name, but not on this machine yet
    ├── ModelFileError            a model file of ours cannot be read: damaged, or of a newer version
    ├── StateError                a saved state cannot be used: missing, damaged, of another model
    ├── RegistryError             models.toml, ours or the user's, has an invalid entry
    ├── SettingsError             config.toml or a variable has an invalid setting
    ├── DownloadError             a file cannot be downloaded: no connection, refused, gone, offline
    │   └── VerificationError     it was downloaded, but it is not the file that was asked for
    ├── TokenizerError            a vocabulary is missing, damaged or of another size than the model's
    ├── DeviceError               the chosen backend cannot run on this machine
    └── StorageError              a file cannot be written: no space, no permission

The message is for the user: it says what is wrong and, where something can be done, what to do. It names settings as
fields in braces, `{device}` or, with a value, `{device=cpu}`, because each interface spells them in its own way: Python
as an argument, the command line as an option, a server as a JSON pointer. Text from elsewhere, in which braces mean
nothing, goes through `literal`. What a message quotes may be of any length: it is cut in one place, here.
`rwkv_cli.cli.main` catches `RwkvError` in exactly one place.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_FIELD = re.compile(r"(?<!\{)\{([a-z][a-z0-9_]*)(?:=([^{}\s]*))?\}(?!\})")
_BRACED = re.compile(r"\{[a-z][a-z0-9_]*(?:=[^{}\s]*)?\}")
_LITERAL = re.compile(r"\{(\{[a-z][a-z0-9_]*(?:=[^{}\s]*)?\})\}")

MOST_CHARACTERS = 800
"""Of a message: a file may be quoted in it that has a megabyte where others have a word."""

_MOST_AT_THE_END = 300  # where a message says what to do

FieldSpelling = Callable[[str, str | None], str]
"""How an interface writes a field, and the value that is suggested for it, if one is."""


def as_argument(field: str, value: str | None) -> str:
    """A field as an argument of a Python function: `device="cpu"`."""
    if value is None:
        return field
    return f"{field}={value.title()}" if value in ("true", "false") else f'{field}="{value}"'


def literal(text: str) -> str:
    """A text for a message in which braces mean nothing, such as the `{prompt}` of a template."""
    return _BRACED.sub(r"{\g<0>}", text)


def shortened(text: str) -> str:
    """A message of at most MOST_CHARACTERS: of a longer one, the beginning and the end."""
    if len(text) <= MOST_CHARACTERS:
        return text
    gap = " […] "
    return text[: MOST_CHARACTERS - _MOST_AT_THE_END - len(gap)] + gap + text[-_MOST_AT_THE_END:]


class RwkvError(Exception):
    """The root of the tree: a failure with a message fit for the user."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        """`message` names fields in braces; a field at its very beginning is the one that is wrong."""
        super().__init__(message)
        wrong = _FIELD.match(message)
        self.field = wrong[1] if wrong else None

    def worded(self, spelling: FieldSpelling) -> str:
        """The message, with fields as an interface spells them, and shortened if it is very long."""
        text = _FIELD.sub(lambda match: spelling(match[1], match[2]), self.args[0])
        return shortened(_LITERAL.sub(r"\1", text))

    def __str__(self) -> str:
        return self.worded(as_argument)


class UsageError(RwkvError):
    """An invalid option, argument or setting."""

    exit_code = 2


class CheckpointError(RwkvError):
    """A published checkpoint that cannot be read."""


class UnsupportedModelError(CheckpointError):
    """A readable model of another kind than RWKV-7."""


class MissingModelError(CheckpointError):
    """A model that is known by name, but not on this machine.

    `reference` is what to give to `rwkv pull`, `problem` the message without what to do.
    """

    def __init__(self, message: str, reference: str, problem: str) -> None:
        super().__init__(message)
        self.reference = reference
        self.problem = problem


class RegistryError(RwkvError):
    """A models.toml that cannot be used."""


class SettingsError(RwkvError):
    """A config.toml that cannot be used, or a variable in its place."""


class DownloadError(RwkvError):
    """A file that cannot be downloaded."""


class VerificationError(DownloadError):
    """A file that was downloaded, but is not the one that was asked for."""


class ModelFileError(RwkvError):
    """A model file of ours that cannot be read."""


class StateError(RwkvError):
    """A saved state that cannot be used."""


class TokenizerError(RwkvError):
    """A vocabulary that is missing, damaged or does not fit the model."""


class DeviceError(RwkvError):
    """A backend that cannot run on this machine."""


class StorageError(RwkvError):
    """A file that cannot be written."""
