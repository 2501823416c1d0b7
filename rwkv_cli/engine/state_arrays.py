"""The arrays of a state in a safetensors file, and nothing else: what `State.save` and `State.load` do.

State files have the same arrays under the same names, so these are read as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.errors import StateError
from rwkv_cli.files.safetensors import SafetensorsWriter, map_safetensors

Array = NDArray[np.float32]


def write(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays by name; all or nothing, and readable by the owner only. Raises StorageError."""
    announced = {name: ("F32", array.shape) for name, array in arrays.items()}
    with SafetensorsWriter(path, announced, private=True) as writer:
        for name, array in arrays.items():
            writer.write(name, array)


def read(path: Path, names: tuple[str, ...]) -> dict[str, Array]:
    """Copies of the arrays of these names. Raises StateError for a file without them, and for one that is damaged."""
    try:
        tensors = map_safetensors(path).tensors
    except FileNotFoundError:
        raise StateError(f"there is no file {path}") from None
    except OSError as error:
        raise StateError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError as error:
        raise StateError(f"{path} is not a state that can be used: {error}") from None
    found = {}
    for name in names:
        tensor = tensors.get(name)
        if tensor is None:
            raise StateError(f"{path} is not a state that can be used: the tensor {name} is missing")
        if tensor.dtype == "F16":
            raise StateError(f"{path} is a compact state: read it with rwkv_cli.state_file.load")
        if tensor.dtype != "F32":
            raise StateError(f"{path} is not a state that can be used: {name} is {tensor.dtype}, not F32")
        found[name] = np.array(tensor.array, np.float32, order="C")
    return found
