"""adapter_config.json, in which the package peft records how a LoRA adapter was trained.

What it says decides how strongly each matrix is changed, by alpha / r or, with `use_rslora`, by alpha / sqrt(r), where
`alpha_pattern` has an alpha of its own for some modules. The rest is checked against the tensors: ranks (`r`,
`rank_pattern`), `target_modules`, `modules_to_save` and `bias`. An adapter whose effect is more than the product B A
added to W is refused: merged as if it were one, it would give another model than was trained.

The keys of a pattern are ends of module names, or regular expressions for them. Since files are hostile, only simple
expressions are run, whose time is bounded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkv_cli.errors import CheckpointError
from rwkv_cli.files.checkpoints.small_files import read_json

FILE = "adapter_config.json"
MOST_ALPHA = 1e6

_MOST_BYTES = 4 << 20
_MOST_RANK = 1 << 20
_MOST_EXPRESSIONS = 16
_LITERAL = re.compile(r"[\w.-]{1,300}", re.ASCII)
_SIMPLE = re.compile(r"(?:[\w.^$|()-]|\\[.d]|\[0-9\]){1,200}", re.ASCII)
_REPEAT = re.compile(r"(\.|\\d|\[0-9\])[*+]")
_MOST_CHOICES = 3  # repetitions and groups: the time of a match grows exponentially with their number

# Fields that make an adapter something else than B A added to W, unless they are null, false or empty.
_REFUSED = {
    "use_dora": "DoRA, which rescales the weights",
    "fan_in_fan_out": "layers that store the transpose, which RWKV-7 does not have",
    "lora_bias": "a bias beside lora_B, which the layers of RWKV-7 have no place for",
    "layer_replication": "a model with repeated layers",
    "use_qalora": "QALoRA, which pools the inputs",
    "alora_invocation_tokens": "an adapter that works only after certain tokens",
    "arrow_config": "a choice among several adapters for each token",
    "trainable_token_indices": "single rows of the embedding",
    "target_parameters": "parameters outside linear layers",
}
# Ways to begin that leave the weights of the base model as they are; the others take a part out of them first.
_INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")


class _Patterns:
    """A dict from ends of module names, or simple expressions, to numbers; the first that matches counts."""

    def __init__(self, path: Path, field: str, content: Mapping[str, float]) -> None:
        self._literal: dict[str, tuple[int, float]] = {}
        self._expressions: list[tuple[int, float, re.Pattern[str]]] = []
        for place, (key, value) in enumerate(content.items()):
            if _LITERAL.fullmatch(key):
                self._literal[key] = place, value
            elif (expression := _compiled(key)) and len(self._expressions) < _MOST_EXPRESSIONS:
                self._expressions.append((place, value, expression))
            else:
                raise CheckpointError(
                    f"{path} has a pattern in {field} that is too complex: {key[:80]!r}; write out module names instead"
                )

    def value(self, module: str) -> float | None:
        """The number for a module; None if no key matches."""
        found = [self._literal[end] for end in _ends(module) if end in self._literal]
        found += [(place, value) for place, value, pattern in self._expressions if pattern.match(module)]
        return min(found)[1] if found else None


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter_config.json says; module names are those of the adapter, without prefixes of peft."""

    path: Path
    alpha: float | None
    is_rank_stabilized: bool
    sha256: str
    _rank: int | None
    _ranks: _Patterns
    _alphas: _Patterns
    _targets: tuple[str, ...]
    _saved: tuple[str, ...]
    _bias: str

    def alpha_of(self, module: str, default: float) -> float:
        """The alpha of a module, where `default` is that of modules without their own."""
        alpha = self._alphas.value(module)
        return default if alpha is None else alpha

    def check_pair(self, module: str, rank: int) -> None:
        """Raise CheckpointError if the file adapts a module otherwise than the settings say."""
        own = self._ranks.value(module)
        expected = self._rank if own is None else own
        if expected is not None and expected != rank:
            raise CheckpointError(
                f"{self.path} says rank {expected} for {module[:80]!r}, but its lora_A and lora_B have {rank}: it "
                "belongs to another adapter"
            )
        if self._targets and not any(end in self._targets for end in _ends(module)):
            raise CheckpointError(
                f"{self.path} does not have {module[:80]!r} among its target_modules, but the adapter changes it: it "
                "belongs to another adapter"
            )

    def check_complete(
        self, adapted: Collection[str], whole: Collection[str], model: Collection[str]
    ) -> None:
        """Raise CheckpointError for modules that are said to be trained, that the model has and that the file lacks.

        The first two have names of the file, the last all names under which the model's modules are known.
        """
        known = {end for module in model for end in _ends(module)}
        trained = {end for module in adapted for end in _ends(module)}
        replaced = {end for module in whole for end in _ends(module)}
        for field, names, present in (
            ("target_modules", self._targets, trained),
            ("modules_to_save", self._saved, replaced | {part for end in replaced for part in _starts(end)}),
        ):
            missing = next((name for name in names if name in known and name not in present), None)
            if missing is not None:
                raise CheckpointError(
                    f"{self.path} has {missing[:80]!r} among its {field}, but the adapter has no weights for it: it is "
                    "incomplete, or belongs to another adapter"
                )
        if self._bias == "all" and not any(name.endswith(".bias") for name in whole):
            raise CheckpointError(f"{self.path} says that biases were trained, but the adapter has none")


def read_adapter_config(path: Path) -> AdapterConfig:
    """Read an adapter_config.json. Raises CheckpointError for one that is damaged or cannot be merged."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CheckpointError(
                f"{path} has {path.stat().st_size:,} bytes, more than any settings of an adapter"
            )
        content = read_json(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    _refuse(path, content)
    rank = content.get("r")
    alpha = content.get("lora_alpha")
    targets = _names(path, content, "target_modules")
    is_partial = any(content.get(field) for field in ("exclude_modules", "layers_to_transform"))
    return AdapterConfig(
        path=path,
        alpha=None if alpha is None else _number(path, "lora_alpha", alpha, whole=False),
        is_rank_stabilized=bool(content.get("use_rslora")),
        sha256=digest,
        _rank=None if rank is None else int(_number(path, "r", rank, whole=True)),
        _ranks=_patterns(path, content, "rank_pattern", whole=True),
        _alphas=_patterns(path, content, "alpha_pattern", whole=False),
        _targets=() if is_partial else targets,
        _saved=_names(path, content, "modules_to_save"),
        _bias=content.get("bias") or "none",
    )


def _refuse(path: Path, content: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the adapter is not B A added to W."""
    kind = content.get("peft_type")
    if kind not in (None, "LORA"):
        raise CheckpointError(
            f"{path} is of an adapter of the kind {str(kind)[:40]!r}: only LORA can be merged"
        )
    for field, what in _REFUSED.items():
        if content.get(field) not in (None, False, [], {}):
            raise CheckpointError(
                f"{path} sets {field}: {what}; this cannot be merged, merge it with the package peft"
            )
    initial = content.get("init_lora_weights")
    if initial not in _INITIAL:
        raise CheckpointError(
            f"{path} sets init_lora_weights to {str(initial)[:40]!r}, which changes the base model too: convert the "
            "adapter to a plain LoRA with the package peft"
        )
    if not isinstance(content.get("use_rslora", False), bool | None):
        raise CheckpointError(f"{path} has a use_rslora that is neither true nor false")
    if content.get("bias") not in (None, "none", "all", "lora_only"):
        raise CheckpointError(f"{path} has an unknown bias: it must be none, all or lora_only")


def _patterns(path: Path, content: Mapping[str, Any], field: str, whole: bool) -> _Patterns:
    found = content.get(field) or {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} has a {field} that is not an object with numbers by module")
    return _Patterns(path, field, {key: _number(path, field, value, whole) for key, value in found.items()})


def _number(path: Path, field: str, value: object, whole: bool) -> float:
    """A rank, which is a whole number, or an alpha."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    most = _MOST_RANK if whole else MOST_ALPHA
    if is_number and whole and isinstance(value, int) and 0 < value <= most:
        return value
    if is_number and not whole and isinstance(value, int | float) and 0 < abs(value) <= most:
        return float(value)
    raise CheckpointError(
        f"{path} has {str(value)[:40]!r} in {field}, which is not a number that can be there"
    )


def _names(path: Path, content: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """A list of names; one string is a regular expression or a word such as all-linear, which says no names."""
    found = content.get(field)
    if found is None or isinstance(found, str):
        return ()
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise CheckpointError(f"{path} has a {field} that is not a list of names")
    return tuple(found)


def _ends(module: str) -> list[str]:
    """A dotted name and every end of it: a.b.c, b.c and c."""
    parts = module.split(".")
    return [".".join(parts[first:]) for first in range(len(parts))]


def _starts(name: str) -> list[str]:
    """A dotted name and every start of it: a.b.c, a.b and a."""
    parts = name.split(".")
    return [".".join(parts[:last]) for last in range(1, len(parts) + 1)]


def _compiled(key: str) -> re.Pattern[str] | None:
    """An expression for the end of a module's name; None if it is not one of the simple ones."""
    plain, repeats = _REPEAT.subn(r"\1", key)
    if repeats + plain.count("(") > _MOST_CHOICES or not _SIMPLE.fullmatch(plain):
        return None
    try:
        return re.compile(rf"(?:.*\.)?(?:{key})$")
    except (re.error, OverflowError):
        return None
