"""adapter_config.json: what the package `peft` writes beside a LoRA adapter about how it was trained.

What it says is applied or checked against the adapter; what this program does not compute is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from rwkv_cli.errors import CheckpointError

Value = TypeVar("Value")

NAME = "adapter_config.json"

_MOST_BYTES = 1_000_000
_MOST_RANK = 1 << 20
# Settings under which W + scale * B A is not what was trained, unless they are false, empty or missing.
_OTHER_KINDS = (
    "use_dora use_qalora use_bdlora lora_bias fan_in_fan_out layer_replication trainable_token_indices "
    "target_parameters alora_invocation_tokens arrow_config megatron_config"
).split()
# Ways to begin the training that change the weights of the model, by which the adapter then differs from it.
_CHANGE_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")
# A key of a pattern is a regular expression; only those that are names are followed.
_PLAIN_KEY = re.compile(r"\^?(?:\w|\\?\.)+\$?")


@dataclass(frozen=True)
class AdapterConfig:
    """How an adapter was trained."""

    path: Path
    data: bytes
    r: int
    alpha: float
    is_rank_stabilized: bool = False  # alpha / sqrt(r) instead of alpha / r
    ranks: Mapping[str, int] = field(default_factory=dict)  # of modules, by the ends of their names
    alphas: Mapping[str, float] = field(default_factory=dict)
    targets: tuple[str, ...] | None = None  # the ends of names; None where they are not listed
    saved: tuple[str, ...] = ()  # modules that were trained as a whole

    def scale(self, module: str, rank: int) -> float:
        """The factor of B A for a module of this rank. Raises CheckpointError where the file says another rank."""
        said = _of(self.ranks, module, self.r)
        if said != rank:
            raise CheckpointError(
                f"{self.path} says that {module[:80]} has the rank {said}, but the adapter has {rank}: get both again"
            )
        return _of(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.is_rank_stabilized else rank)

    def check_modules(self, adapted: Collection[str], whole: Collection[str]) -> None:
        """Raise CheckpointError unless these are the modules that the file lists."""
        if self.targets is None:
            return
        for module in adapted:
            if not any(_ends_in(module, target) for target in self.targets):
                raise CheckpointError(
                    f"{self.path} does not list {module[:80]} in target_modules: get both again"
                )
        wanted = [(target, adapted) for target in self.targets] + [(name, whole) for name in self.saved]
        for name, found in wanted:
            if not any(_ends_in(module, name) for module in found):
                raise CheckpointError(
                    f"{self.path} lists {name[:80]!r}, which the adapter lacks: get both again"
                )


def read_config(adapter: Path) -> AdapterConfig | None:
    """The adapter_config.json beside an adapter; None if there is none. Raises CheckpointError."""
    path = adapter.with_name(NAME)
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    try:
        settings = json.loads(data) if len(data) <= _MOST_BYTES else None
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} is not the JSON of an adapter: get it again")
    _refuse_other_kinds(path, settings)
    return AdapterConfig(
        path=path,
        data=data,
        r=_rank(path, "r", settings.get("r")),
        alpha=_alpha(path, "lora_alpha", settings.get("lora_alpha")),
        is_rank_stabilized=bool(settings.get("use_rslora")),
        ranks={
            key: _rank(path, "rank_pattern", value) for key, value in _pattern(path, settings, "rank_pattern")
        },
        alphas={
            key: _alpha(path, "alpha_pattern", value)
            for key, value in _pattern(path, settings, "alpha_pattern")
        },
        targets=_names(path, settings, "target_modules"),
        saved=_names(path, settings, "modules_to_save") or (),
    )


def _refuse_other_kinds(path: Path, settings: Mapping[str, object]) -> None:
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        raise CheckpointError(
            f"{path} describes an adapter of the kind {str(kind)[:40]!r}: only LORA can be merged"
        )
    for name in _OTHER_KINDS:
        if settings.get(name):
            raise CheckpointError(f"{path} has {name}, which cannot be merged here: merge it with peft first")
    beginning = settings.get("init_lora_weights", True)
    if isinstance(beginning, str) and beginning.lower().startswith(_CHANGE_THE_MODEL):
        raise CheckpointError(
            f"{path} says that the training began with {beginning[:40]!r}, which changes the model: "
            "have peft convert it to an ordinary LoRA first"
        )


def _rank(path: Path, name: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= _MOST_RANK:
        raise CheckpointError(f"{path} has no valid {name} ({str(value)[:40]})")
    return value


def _alpha(path: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < abs(value) <= 1e6:
        raise CheckpointError(f"{path} has no valid {name} ({repr(value)[:40]})")
    return float(value)


def _pattern(path: Path, settings: Mapping[str, object], name: str) -> list[tuple[str, object]]:
    pattern = settings.get(name) or {}
    if not isinstance(pattern, dict):
        raise CheckpointError(f"{path} has no valid {name}")
    if strange := next((key for key in pattern if not _PLAIN_KEY.fullmatch(key)), None):
        raise CheckpointError(
            f"{path} has a {name} for {strange[:80]!r}: only names of modules can be followed"
        )
    return list(pattern.items())


def _names(path: Path, settings: Mapping[str, object], name: str) -> tuple[str, ...] | None:
    """Names of modules; None for all of a kind, or for a regular expression."""
    names = settings.get(name)
    if names is None or isinstance(names, str):
        return None
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise CheckpointError(f"{path} has no valid {name}")
    return tuple(names)


def _of(pattern: Mapping[str, Value], module: str, default: Value) -> Value:
    """The value of the first key that matches, as peft chooses it."""
    return next((value for key, value in pattern.items() if _matches(key, module)), default)


def _matches(key: str, module: str) -> bool:
    name = key.removeprefix("^").removesuffix("$").replace("\\.", ".")
    return module == name if key.startswith("^") else _ends_in(module, name)


def _ends_in(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")
