"""The weights of a model file as the CPU kernels take them: where the file is mapped, described by records."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpu_kernels import abi
from cpu_kernels.runtime.aot import address
from rwkv_cli.config import HEAD_SIZE
from rwkv_cli.files import weight_layouts
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.weight_layouts import CHANNELS, GROUP, SCALE, TILE_ROWS
from rwkv_cli.tensors import MATRICES, NORMS, VECTORS

Array = NDArray[np.float32]

_KINDS = {"int8": abi.INT8, "int4": abi.INT4, "fp16": abi.FLOAT16, "fp32": abi.FLOAT32}

# The table of tensors, and the sizes, that files and kernels have in common.
assert (MATRICES, VECTORS, NORMS) == (abi.MATRICES, abi.VECTORS, abi.NORMS)
assert (HEAD_SIZE, GROUP, TILE_ROWS, CHANNELS) == (abi.HEAD_SIZE, abi.GROUP, abi.LANES, abi.BLOCK)


class CpuWeights:
    """The table of matrices and the vectors of a model, and where the rest of its weights is."""

    def __init__(self, model: ModelFile) -> None:
        self._model = model  # the records have addresses only: this keeps the mapping alive
        self.matrices, self._vectors = self._weights()  # MATRIX [L * N_MATRICES + 1], the head last
        self._norms = np.stack([model.stored(name) for name in NORMS])

    @property
    def head_rows(self) -> int:
        """Rows of the head: V, padded."""
        return int(self.matrices[-1]["rows"])

    @property
    def ranks(self) -> list[int]:
        """Of the four low-rank maps, padded."""
        layer = abi.N_MATRICES * (self._model.config.n_layer - 1)  # the first one lacks one
        return [int(self.matrices[layer + abi.W1 + i]["rows"]) for i in range(4)]

    def describe(self, run: Any) -> None:
        """Set the fields of a record RUN that tell of the model."""
        config = self._model.config
        run["L"], run["C"], run["F"] = config.n_layer, config.n_embd, config.n_ffn
        run["norms"], run["vectors"] = address(self._norms), address(self._vectors)
        run["embedding"] = address(self._model.stored("emb.weight"))
        weight_type = self._model.info.type_of("emb.weight")
        run["embedding_kind"] = _KINDS[weight_type]
        if weight_type == "int8":
            run["embedding_scales"] = address(self._model.stored("emb.weight" + SCALE))

    def _weights(self) -> tuple[NDArray[Any], Array]:
        """The table of matrices, and the vectors of all layers [L, N_VECTORS, C]."""
        L, C = self._model.config.n_layer, self._model.config.n_embd
        shapes = self._model.config.tensor_shapes()  # layer 0 lacks some tensors, whose places stay empty
        matrices = np.zeros(L * abi.N_MATRICES + 1, abi.MATRIX)
        vectors = np.zeros((L, abi.N_VECTORS, C), np.float32)
        for i in range(L):
            for j, suffix in enumerate(MATRICES):
                if (name := f"blocks.{i}.{suffix}") in shapes:
                    self._describe_matrix(matrices[i * abi.N_MATRICES + j], name)
            for j, suffix in enumerate(VECTORS):
                if (name := f"blocks.{i}.{suffix}") in shapes:
                    vectors[i, j] = self._model.stored(name).reshape(-1)
        self._describe_matrix(matrices[-1], "head.weight")
        return matrices, vectors

    def _describe_matrix(self, row: Any, name: str) -> None:
        """Fill a record MATRIX from a stored tensor."""
        weights = self._model.stored(name)
        weight_type = self._model.info.type_of(name)
        layout = weight_layouts.layout_of(name)
        is_small = layout == "low_rank" and weight_type in weight_layouts.INTEGERS
        row["kind"] = abi.SMALL if is_small else _KINDS[weight_type]
        if layout == "by_input":
            row["rows"], row["cols"] = weights.shape[0] * CHANNELS, weights.shape[1]
        else:
            packed = 2 if weight_type == "int4" else 1
            row["rows"], row["cols"] = (
                weights.shape[0] * TILE_ROWS,
                weights.shape[1] * weights.shape[3] * packed,
            )
        row["weights"] = address(weights)
        if weight_type in weight_layouts.INTEGERS:
            row["scales"] = address(self._model.stored(name + SCALE))
