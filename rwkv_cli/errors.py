"""Every failure that a user can meet, each with one clear sentence.

    RwkvError                     exit code 1
    ├── UsageError                exit code 2: an option or argument that cannot be right
    ├── CheckpointError           a published checkpoint cannot be read: missing, truncated, hostile, wrong shape
    │   ├── UnsupportedModelError it can be read, but it is not an RWKV-7 model
    │   └── MissingModelError     a model that is known by name, but not on this machine yet
    ├── ModelFileError            a model file of ours cannot be read: damaged, or of a newer version
    ├── StateError                a saved state cannot be used: missing, damaged, of another model
    ├── RegistryError             models.toml, ours or the user's, holds something that it must not
    ├── DownloadError             a file cannot be fetched: no connection, refused, gone, offline
    │   └── VerificationError     it was fetched, but it is not the file that was asked for
    ├── TokenizerError            a vocabulary is missing, damaged or of another size than the model's
    ├── DeviceError               the chosen backend cannot run on this machine
    └── StorageError              a file cannot be written: no room, no permission

The message is for the person at the terminal: it says what is wrong and, where there is something to do, what to do.
The command line catches `RwkvError` in exactly one place, `rwkv_cli.cli.main`.
"""


class RwkvError(Exception):
    """The root of the tree: a failure with a message fit for the user."""

    exit_code = 1


class UsageError(RwkvError):
    """An option or argument that cannot be right."""

    exit_code = 2


class CheckpointError(RwkvError):
    """A published checkpoint that cannot be read."""


class UnsupportedModelError(CheckpointError):
    """A readable model of another kind than RWKV-7."""


class MissingModelError(CheckpointError):
    """A model that is known by name, but not on this machine; `reference` is what to give to `rwkv pull`."""

    def __init__(self, message: str, reference: str) -> None:
        super().__init__(message)
        self.reference = reference


class RegistryError(RwkvError):
    """A models.toml that cannot be used."""


class DownloadError(RwkvError):
    """A file that cannot be fetched."""


class VerificationError(DownloadError):
    """A file that was fetched, but is not the one that was asked for."""


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
