"""States that state tuning has trained: official .pth files with a tensor `time_state` for each layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rwkv_cli.config import ModelConfig
from rwkv_cli.engine.state import State
from rwkv_cli.errors import StateError
from rwkv_cli.files.checkpoints.base import LazyTensor
from rwkv_cli.files.checkpoints.pth import read_state_dict

_TRAINED = re.compile(r"blocks\.([0-9]{1,4})\.att\.time_state")


def trained_state(file: Path, config: ModelConfig, model_name: str) -> State:
    """The state in a file of state tuning: `time_state` [H, N, N] of each layer, with keys before values.

    Raises StateError, which names the model, for a file of another kind or shape, CheckpointError for a damaged one.
    """
    tensors = read_state_dict(file)
    state = State.zeros(config)
    _check_trained(file, tensors, config, model_name)
    for name, tensor in tensors.items():
        match = _TRAINED.fullmatch(name)
        assert match
        values = tensor.read()
        if not np.isfinite(values).all():
            raise StateError(f"{file} contains NaN or infinity in {name}")
        state.wkv[int(match[1])] = values.swapaxes(-1, -2)
    return state


def _check_trained(
    file: Path, tensors: Mapping[str, LazyTensor], config: ModelConfig, model_name: str
) -> None:
    L, H, N = config.n_layer, config.n_head, config.head_size
    for name in tensors:
        if not _TRAINED.fullmatch(name):
            what = "a model: pass it as {model}" if name.startswith(("emb.", "blocks.")) else "something else"
            raise StateError(
                f"{file} is not a trained state: it contains the tensor {name[:80]!r}; it may be {what}"
            )
    layers = {int(match[1]) for name in tensors if (match := _TRAINED.fullmatch(name))}
    shapes = {tensor.shape for tensor in tensors.values()}
    if layers != set(range(L)) or shapes != {(H, N, N)}:
        found = ", ".join(sorted(str(list(shape)) for shape in shapes)) or "nothing"
        raise StateError(
            f"{file} has {len(layers)} layers of {found}, and {model_name} has {L} of [{H}, {N}, {N}]: "
            "pass the model that it was trained for as {model}"
        )
