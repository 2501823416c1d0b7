"""How the server is to run, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rwkv_cli import machine
from rwkv_cli.errors import UsageError
from rwkv_cli.sampling_settings import SamplingOverrides

_UNKNOWN_MEMORY = 16_000_000_000
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class ServerSettings:
    """Everything that `rwkv serve` can be told. Raises UsageError for what must not be."""

    model: str | None = None  # the default model: a name or a path; None for the built-in one
    device: str = "auto"
    threads: int | None = None
    parallel: int | None = (
        None  # sequences of one model that run at the same time; None for the backend's number
    )
    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: Sequence[str] = ()  # one of which a client must have; none asks for none
    insecure: bool = False  # other machines may connect without a key
    allowed_hosts: Sequence[str] = ()  # names by which this server is known, beside localhost and addresses
    allowed_origins: Sequence[
        str
    ] = ()  # web pages from elsewhere that may use it, such as https://chat.example
    max_body: int = 16_000_000  # bytes of a request
    max_prompt: int = 1_000_000  # tokens of a request
    max_queue: int = 64  # requests that wait for a model
    timeout: float = 1800.0  # seconds that an answer may take
    grace: float = 30.0  # seconds that answers are given to end when the server stops
    memory_bytes: int | None = (
        None  # of models that are loaded; None for three quarters of the machine's memory
    )
    state_bytes: int = 512_000_000  # of states in memory, for each model
    disk_bytes: int = 8_000_000_000  # of states of conversations on disk
    log_prompts: bool = False
    sampling: SamplingOverrides | None = None  # the user's own defaults

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"{{port}} is {self.port}: it must be between 0 and 65535")
        if any(not key.strip() or not key.isascii() for key in self.api_keys):
            raise UsageError("{api_key} must have at least one character, and only ASCII ones")
        if not (self.is_local or self.api_keys or self.insecure):
            raise UsageError(
                f"{{host}} is {self.host}: other machines could use this server; set {{api_key}}, or {{insecure}} to "
                "let everybody in"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in LOOPBACK

    @property
    def model_bytes(self) -> int:
        """Bytes that loaded models may take together."""
        return self.memory_bytes or (machine.memory().total or _UNKNOWN_MEMORY) * 3 // 4
