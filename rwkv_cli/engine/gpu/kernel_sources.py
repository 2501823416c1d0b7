"""The CUDA sources as text, and what the host reads from them: constants, kernels' parameters, structs, enums.

So a launch names its arguments, and no number of a kernel is written a second time in Python.
"""

from __future__ import annotations

import ast
import functools
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from rwkv_cli.errors import DeviceError

KINDS = {"fp16": "FP16", "int8": "INT8", "int4": "INT4"}
"""The values of the macro KIND in cuda/common.cuh, by the type of the weights."""

_INCLUDE = re.compile(r'^#include "(.+)"\n', re.MULTILINE)
_COMMENT = re.compile(r"//.*")
_KERNEL = re.compile(
    r'extern "C" __global__ void\s+(?:__launch_bounds__\([\w, ]+\)\s+)?(?P<name>\w+)\((?P<parameters>[^)]*)\)'
)
_DEFINE = re.compile(r"^#define (\w+) +(.+)$", re.MULTILINE)
_STRUCT = re.compile(r"^struct (\w+) \{\n([^{}()]*)\};", re.MULTILINE)
_ENUM = re.compile(r"^enum (\w+) \{([^}]*)\};", re.MULTILINE)
_CONDITIONAL = re.compile(r"\(([^()?]*)\?([^():]*):([^()]*)\)")
_NUMBER = re.compile(r"\b(?:(0x[\da-f]+)u?|(\d[\d.]*(?:e-?\d+)?)[fu]?)\b")
_OPERATORS: Mapping[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_TYPES = {"int": np.int32, "float": np.float32, "double": np.float64}


class Kernel(NamedTuple):
    """A kernel."""

    name: str
    file: str
    parameters: Mapping[str, str]  # C++ types by name, in their order


def folder() -> Path:
    """Where the sources are: in the package when installed, at the top of a checkout."""
    packaged = Path(__file__).parents[2] / "cuda"
    return packaged if packaged.exists() else Path(__file__).parents[3] / "cuda"


def source(name: str, seen: set[str] | None = None) -> str:
    """One file with everything that it includes, each file once."""
    seen = set() if seen is None else seen

    def included(match: re.Match[str]) -> str:
        if match[1] in seen:
            return ""
        seen.add(match[1])
        return source(match[1], seen)

    return f'#line 1 "{name}"\n' + _INCLUDE.sub(included, _text(name).replace("#pragma once\n", ""))


def operations() -> list[str]:
    """The files that have kernels."""
    return sorted(path.name for path in folder().glob("*.cu"))


@functools.cache
def kernels() -> Mapping[str, Kernel]:
    """Every kernel, by its name."""
    return MappingProxyType({kernel.name: kernel for name in operations() for kernel in _kernels_of(name)})


def ordered(kernel: str, arguments: Mapping[str, int]) -> tuple[int, ...]:
    """A kernel's arguments, given by name, in the order of its parameters.

    Raises TypeError for a name that is missing or unknown, and for an unknown kernel.
    """
    n_parameters, in_order = _order(kernel)
    if len(arguments) == n_parameters:
        try:
            return in_order(arguments)
        except KeyError:
            pass
    expected = kernels()[kernel].parameters
    missing = ", ".join(name for name in expected if name not in arguments)
    unknown = ", ".join(name for name in arguments if name not in expected)
    raise TypeError(
        f"the kernel {kernel}: missing arguments: {missing or 'none'}; unknown: {unknown or 'none'}"
    )


@functools.cache
def constants(file: str, weight_type: str = "fp16") -> Mapping[str, int]:
    """The whole numbers that a file and what it includes define, compiled for a type of weights.

    Raises DeviceError for a type that has no kernels.
    """
    values: dict[str, int] = {}
    for name, expression in _DEFINE.findall(_without_comments(source(file))):
        # KIND has a default, which is not used: the compiler is always told.
        value = _evaluated(kind_of(weight_type) if name == "KIND" else expression, values)
        if value is not None:
            values.setdefault(name, value)
    return MappingProxyType(values)


def structure(file: str, name: str) -> np.dtype[np.void]:
    """A struct of a file, as a NumPy type of the same layout."""
    fields = [
        (field, np.dtype(np.uint64 if "*" in kind else _TYPES[kind]))
        for kind, field in _declared(_found(_STRUCT, file, name))
    ]
    return np.dtype(fields, align=True)


def enumeration(file: str, name: str) -> tuple[str, ...]:
    """The names of an enum of a file, which count from 0."""
    return tuple(part.strip() for part in _found(_ENUM, file, name).split(",") if part.strip())


def kind_of(weight_type: str) -> str:
    """The value of the macro KIND for a type of weights. Raises DeviceError for a type that has no kernels."""
    if weight_type not in KINDS:
        raise DeviceError(
            f"the GPU has no kernels for {weight_type} weights: convert the model with {{type=fp16}} to run it there"
        )
    return KINDS[weight_type]


@functools.cache
def _text(name: str) -> str:
    return (folder() / name).read_text(encoding="utf-8")


def _without_comments(text: str) -> str:
    return _COMMENT.sub("", text)


def _kernels_of(file: str) -> Iterator[Kernel]:
    for found in _KERNEL.finditer(_without_comments(_text(file))):
        parameters = (part.replace("__restrict__", "").split() for part in found["parameters"].split(","))
        yield Kernel(found["name"], file, {name: " ".join(kind) for *kind, name in parameters})


@functools.cache
def _order(kernel: str) -> tuple[int, Callable[[Mapping[str, int]], tuple[int, ...]]]:
    """The number of a kernel's parameters, and what puts its arguments in their order."""
    if kernel not in kernels():
        raise TypeError(f"unknown kernel {kernel}: there are {', '.join(kernels())}")
    parameters = kernels()[kernel].parameters
    return len(parameters), operator.itemgetter(*parameters)


def _found(pattern: re.Pattern[str], file: str, name: str) -> str:
    """The body of a declaration in a file, without comments."""
    bodies: dict[str, str] = dict(pattern.findall(_without_comments(_text(file))))
    return bodies[name]


def _declared(body: str) -> Iterator[tuple[str, str]]:
    """The type and the name of each field: `float temperature, top_p;` declares two."""
    for declaration in filter(None, map(str.strip, body.split(";"))):
        kind, names = declaration.rsplit(" ", 1) if "," not in declaration else declaration.split(" ", 1)
        for name in names.split(","):
            yield kind.strip(), name.strip()


def _evaluated(expression: str, values: Mapping[str, int]) -> int | None:
    """The value of a constant expression, without nested conditionals; None if it is not a whole number."""
    python = _CONDITIONAL.sub(r"((\2) if (\1) else (\3))", expression)
    python = _NUMBER.sub(r"\1\2", python).replace("/", "//")
    try:
        value = _value(ast.parse(python, mode="eval").body, values)
    except (KeyError, SyntaxError):
        return None
    return value if type(value) is int else None


def _value(node: ast.expr, values: Mapping[str, int]) -> int | float:
    """The value of an expression. Raises KeyError for an unknown name, and for what is not arithmetic."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, values)
        case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]):
            return _OPERATORS[type(op)](_value(left, values), _value(right, values))
        case ast.IfExp(test=test, body=body, orelse=otherwise):
            return _value(body if _value(test, values) else otherwise, values)
    raise KeyError(ast.dump(node))
