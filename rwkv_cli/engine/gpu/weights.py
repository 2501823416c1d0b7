"""A model file's weights on the device, in the order in which the kernels of cuda/ read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.gpu import kernel_sources
from rwkv_cli.engine.gpu.device_protocol import ALIGNMENT, Device, aligned
from rwkv_cli.engine.gpu.launch_plan import Launch
from rwkv_cli.errors import DeviceError
from rwkv_cli.files import weight_layouts
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.safetensors import release_pages
from rwkv_cli.files.weight_layouts import CHANNELS, GROUP, SCALE, TILE_ROWS
from rwkv_cli.tensors import NORMS, VECTORS

LOW_RANK = "wavg"
"""The low-rank maps by letter, in the order of their rows in `LowRank.first`."""

WIDTHS = {"fp16": 2.0, "int8": 1.0, "int4": 0.5}
"""Bytes of a weight of a big matrix, by the type of the file."""

_COPY_BLOCKS, _COPY_THREADS = 1024, 256


class Matrix(NamedTuple):
    """W [R, K], row-major; integers have bfloat16 scales [R, K / 64].

    `ffn.value` is transposed: W^T [K, R], scales [K / 64, R].
    """

    weights: int  # address
    scales: int  # address, 0 for float16
    R: int
    K: int


class LowRank(NamedTuple):
    """The maps of w, a, v and g."""

    first: Matrix  # [the sum of ranks, C] w1, a1, v1, g1
    second: dict[str, Matrix]  # by letter: w2, a2, v2, g2 [C, rank], scales [C, ceil(rank / 64)]


@dataclass
class Layer:
    """One layer on the device."""

    vectors: int  # address of [len(VECTORS), C] float32
    main: Matrix  # [3 C, C] receptance, key and value of the time mix
    low_rank: LowRank  # as in the file, float16 or int8, for decoding
    low_rank_half: LowRank  # float16, for the tensor cores
    output: Matrix  # [C, C]
    key: Matrix  # [F, C] of the channel mix
    value: Matrix  # [C, F], transposed

    def vector(self, name: str, C: int) -> int:
        """The address of a vector [C]."""
        return self.vectors + 4 * C * VECTORS.index(name)


class Weights:
    """All weights of a model."""

    def __init__(self, gpu: Device, model: ModelFile) -> None:
        """Copy them to the device. Raises DeviceError if too little memory is free."""
        _check_vectors()
        self.config = model.config
        self._gpu, self._model = gpu, model
        self.type = model.info.weight_type
        self._scaled = self.type in weight_layouts.INTEGERS
        self._memory = gpu.allocate(self._capacity())
        self._next = self._memory.address
        self._staging = gpu.allocate(max(model.stored(name).nbytes for name in model.names))
        self.ranks = {name: self._rank(name) for name in LOW_RANK}
        self._norms = self._vectors(NORMS)
        self.embedding = self._raw("emb.weight")
        self.embedding_scales = self._raw("emb.weight" + SCALE) if self._scaled else 0
        self.layers = [self._layer(i) for i in range(self.config.n_layer)]
        self.head = self._matrices(["head.weight"])
        gpu.synchronize()
        del self._staging

    def norm(self, name: str) -> int:
        """The address of one of `NORMS` [C], float32."""
        return self._norms + 4 * self.config.n_embd * NORMS.index(name)

    def _capacity(self) -> int:
        """Enough bytes for all weights."""
        sizes = [self._device_bytes(name) + 2 * ALIGNMENT for name in self._model.names]
        return sum(sizes) + 8 * self.config.n_embd * 1024  # with zeros for what layer 0 lacks

    def _device_bytes(self, name: str) -> int:
        """Bytes of a stored array on the device, where integer low-rank maps are kept in float16 as well."""
        array = self._model.stored(name)
        twice = weight_layouts.layout_of(name) == "low_rank" and self._scaled
        return array.nbytes + (2 * array.size if twice else 0)

    def _take(self, nbytes: int) -> int:
        """The address of so far unused memory for weights."""
        address = self._next
        self._next += aligned(nbytes)
        if self._next > self._memory.address + self._memory.nbytes:
            raise DeviceError("the model file has more weights than its tensors' shapes say")
        return address

    def _rank(self, name: str) -> int:
        """The rank of a low-rank map as stored: padded."""
        last = f"blocks.{self.config.n_layer - 1}.att.{name}1"
        return self._model.stored(last).shape[0] * TILE_ROWS if last in self._model.names else 0

    def _stage(self, name: str) -> NDArray[Any]:
        """Copy a stored array into the staging memory, in the layout of the file."""
        array = self._model.stored(name)
        self._gpu.synchronize()  # the previous array may still be read
        self._gpu.upload(self._staging.address, array)
        return array

    def _raw(self, name: str) -> int:
        """Copy a stored array to the device in the layout of the file: its address."""
        array = self._model.stored(name)
        address = self._take(array.nbytes)
        self._gpu.upload(address, array)
        release_pages(array)
        return address

    def _vectors(self, names: tuple[str, ...] | list[str]) -> int:
        """Copy vectors [C] to the device, one after another, with zeros for what layer 0 lacks: their address."""
        C = self.config.n_embd
        rows = [
            self._model.stored(name).reshape(-1) if name in self._model.names else np.zeros(C)
            for name in names
        ]
        stacked = np.stack(rows).astype(np.float32)
        address = self._take(stacked.nbytes)
        self._gpu.upload(address, stacked)
        self._gpu.synchronize()  # before `stacked` is freed
        return address

    def _layer(self, i: int) -> Layer:
        block = f"blocks.{i}."
        low_rank = self._low_rank(block)
        return Layer(
            vectors=self._vectors([block + name for name in VECTORS]),
            main=self._matrices([f"{block}att.{name}.weight" for name in ("receptance", "key", "value")]),
            low_rank=low_rank,
            low_rank_half=self._halves(low_rank),
            output=self._matrices([block + "att.output.weight"]),
            key=self._matrices([block + "ffn.key.weight"]),
            value=self._by_input(block + "ffn.value.weight"),
        )

    def _low_rank(self, block: str) -> LowRank:
        """The maps as in the file, with zeros for what layer 0 lacks."""
        C, row = self.config.n_embd, 0
        first, second = self._reserve_low_rank(sum(self.ranks.values()), C), {}
        for name, rank in self.ranks.items():
            second[name] = self._reserve_low_rank(C, rank)
            self._fill_low_rank(f"{block}att.{name}1", self._rows(first, row, rank))
            self._fill_low_rank(f"{block}att.{name}2", second[name])
            row += rank
        return LowRank(first, second)

    def _low_rank_bytes(self, R: int, K: int) -> tuple[int, int]:
        """Bytes of the weights and of the scales of a map, as in the file."""
        return (R * K, 2 * R * -(-K // GROUP)) if self._scaled else (2 * R * K, 0)

    def _reserve_low_rank(self, R: int, K: int) -> Matrix:
        weights, scales = self._low_rank_bytes(R, K)
        return Matrix(self._take(weights), self._take(scales) if scales else 0, R, K)

    def _rows(self, matrix: Matrix, begin: int, count: int) -> Matrix:
        """`count` rows of a map."""
        weights, scales = self._low_rank_bytes(begin, matrix.K)
        return Matrix(matrix.weights + weights, matrix.scales + scales, count, matrix.K)

    def _fill_low_rank(self, name: str, to: Matrix) -> None:
        sizes = self._low_rank_bytes(to.R, to.K)
        for part, target, size in zip((name, name + SCALE), (to.weights, to.scales), sizes, strict=True):
            if part in self._model.names:
                self._untile(part, target)
            elif size:
                self._gpu.clear(target, size)

    def _halves(self, maps: LowRank) -> LowRank:
        """The same maps in float16."""
        if not self._scaled:
            return maps
        second = {name: self._half(matrix) for name, matrix in maps.second.items()}
        return LowRank(self._half(maps.first), second)

    def _half(self, matrix: Matrix) -> Matrix:
        """A low-rank map in int8, converted to float16."""
        weights, scales, R, K = matrix
        target = self._take(2 * R * K)
        self._run("to_half", {"from": weights, "scales": scales, "to": target, "R": R, "K": K})
        return Matrix(target, 0, R, K)

    def _matrices(self, names: list[str]) -> Matrix:
        """Matrices of one width, concatenated along the rows, row-major."""
        arrays = [self._model.stored(name) for name in names]
        rows = [array.shape[0] * TILE_ROWS for array in arrays]
        packed = 2 if self.type == "int4" else 1
        K = arrays[0].shape[1] * arrays[0].shape[3] * packed
        weights = at = self._take(sum(array.nbytes for array in arrays))
        for name, array in zip(names, arrays, strict=True):
            self._untile(name, at)
            at += array.nbytes
        scales = 0
        if self._scaled:
            scales = at = self._take(sum(rows) * K // GROUP * 2)
            for name, R in zip(names, rows, strict=True):
                self._untile(name + SCALE, at)
                at += R * K // GROUP * 2
        return Matrix(weights, scales, sum(rows), K)

    def _untile(self, name: str, target: int) -> None:
        """Rearrange tiles [R / 16, K, 16, c] as rows [R, K, c]."""
        array = self._stage(name)
        tiles, K, _, c = array.shape
        arguments = {"from": self._staging.address, "to": target, "R": tiles * TILE_ROWS, "K": K}
        self._run(f"untile{c * array.itemsize}", arguments)
        release_pages(array)

    def _by_input(self, name: str) -> Matrix:
        """Blocks of 64 channels [R / 64, K, 64], rearranged as rows by hidden unit [K, R]."""
        addresses = []
        parts = [name, name + SCALE] if self._scaled else [name]
        for part in parts:
            array = self._stage(part)
            blocks, units, width = array.shape
            target = self._take(array.nbytes)
            sizes = {"B": blocks, "F": units, "width": width * array.itemsize // 16}
            self._run("unblock", {"from": self._staging.address, "to": target, **sizes})
            addresses.append(target)
            release_pages(array)
        blocks, F = self._model.stored(name).shape[:2]
        return Matrix(addresses[0], addresses[1] if len(addresses) > 1 else 0, blocks * CHANNELS, F)

    def _run(self, kernel: str, arguments: dict[str, int]) -> None:
        """Run a kernel of cuda/weights.cu, whose threads take elements until none is left."""
        self._gpu.run([Launch(kernel, (_COPY_BLOCKS,), _COPY_THREADS, arguments)])


def _check_vectors() -> None:
    """Raise AssertionError unless the kernels index the vectors of a layer in the order of the table."""
    names = tuple(name.replace(".", "_").upper() for name in VECTORS)
    found = kernel_sources.enumeration("vectors.cuh", "Vector")
    if found != names:
        raise AssertionError(f"cuda/vectors.cuh has the order {found}, and the host has {names}")
