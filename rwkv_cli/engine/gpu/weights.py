"""A model file's weights on the device, in the order in which the kernels of cuda/ read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkv_cli.engine.gpu.buffers import ALIGNMENT, aligned
from rwkv_cli.engine.gpu.device_protocol import Device
from rwkv_cli.engine.gpu.launch_plan import Launch
from rwkv_cli.errors import DeviceError
from rwkv_cli.files import weight_layouts
from rwkv_cli.files.model_file import ModelFile
from rwkv_cli.files.safetensors import release_pages
from rwkv_cli.files.weight_layouts import CHANNELS, GROUP, SCALE, TILE_ROWS

# The vectors of a layer in the order in which kernels find them: the mixes of six matrices, what the recurrence takes,
# and the norms with the mix of the channel mix.
VECTORS = (
    "att.x_r att.x_k att.x_v att.x_w att.x_a att.x_g att.w0 att.a0 att.v0 att.k_k att.k_a att.r_k "
    "att.ln_x.weight att.ln_x.bias ln1.weight ln1.bias ln2.weight ln2.bias ffn.x_k"
).split()
NORMS = ("blocks.0.ln0.weight", "blocks.0.ln0.bias", "ln_out.weight", "ln_out.bias")
LOW_RANK = "wavg"
WIDTHS = {"fp16": 2.0, "int8": 1.0, "int4": 0.5}
"""Bytes of a weight of a big matrix, by the type of the file."""

_COPY_BLOCKS, _COPY_THREADS = 1024, 256


class Matrix(NamedTuple):
    """W [R, K], row-major; whole numbers have bfloat16 scales [R, K / 64].

    `ffn.value` lies the other way round: W^T [K, R], scales [K / 64, R].
    """

    weights: int  # address
    scales: int  # address, 0 for float16
    R: int
    K: int


class LowRank(NamedTuple):
    """The maps of w, a, v and g."""

    first: Matrix  # [the sum of ranks, C] w1, a1, v1, g1
    second: dict[str, Matrix]  # by letter: w2, a2, v2, g2 [C, rank], scales [C, rank / 64 rounded up]


@dataclass
class Layer:
    """One layer on the device."""

    vectors: int  # address of [len(VECTORS), C] float32
    main: Matrix  # [3 C, C] receptance, key and value
    low_rank: LowRank  # as the file has them, in float16 or int8, for decoding
    low_rank_half: LowRank  # in float16, for the tensor cores
    output: Matrix
    key: Matrix
    value: Matrix

    def vector(self, name: str, C: int) -> int:
        """The address of a vector [C]."""
        return self.vectors + 4 * C * VECTORS.index(name)


class Weights:
    """All weights of a model."""

    def __init__(self, gpu: Device, model: ModelFile) -> None:
        """Copy them to the device. Raises DeviceError if it has too little memory."""
        self.config = model.config
        self._gpu, self._model = gpu, model
        self.type = model.info.weight_type
        self._scaled = self.type in weight_layouts.INTEGERS
        self._memory = gpu.allocate(self._room())
        self._next = self._memory.address
        self._staging = gpu.allocate(max(model.stored(name).nbytes for name in model.names))
        self.ranks = {name: self._rank(name) for name in LOW_RANK}
        self.norms = self._vectors(NORMS)
        self.embedding = self._raw("emb.weight")
        self.embedding_scales = self._raw("emb.weight" + SCALE) if self._scaled else 0
        self.layers = [self._layer(i) for i in range(self.config.n_layer)]
        self.head = self._matrices(["head.weight"])
        gpu.synchronize()
        del self._staging

    def _room(self) -> int:
        sizes = [self._device_bytes(name) + 2 * ALIGNMENT for name in self._model.names]
        return sum(sizes) + 8 * self.config.n_embd * 1024  # and what layer 0 lacks, as zeros

    def _device_bytes(self, name: str) -> int:
        """What becomes of a stored array: low-rank maps of whole numbers are there in float16 as well."""
        array = self._model.stored(name)
        twice = weight_layouts.layout_of(name) == "low_rank" and self._scaled
        return array.nbytes + (2 * array.size if twice else 0)

    def _take(self, nbytes: int) -> int:
        address = self._next
        self._next += aligned(nbytes)
        if self._next > self._memory.address + self._memory.nbytes:
            raise DeviceError("the model file has more weights than its sizes tell")
        return address

    def _rank(self, name: str) -> int:
        """The rank of a low-rank map as it is stored, padded."""
        last = f"blocks.{self.config.n_layer - 1}.att.{name}1"
        return self._model.stored(last).shape[0] * TILE_ROWS if last in self._model.names else 0

    def _stage(self, name: str) -> NDArray[Any]:
        """Copy a stored array into the staging memory, as it lies in the file."""
        array = self._model.stored(name)
        self._gpu.synchronize()  # what was there is used
        self._gpu.upload(self._staging.address, array)
        return array

    def _raw(self, name: str) -> int:
        array = self._model.stored(name)
        address = self._take(array.nbytes)
        self._gpu.upload(address, array)
        release_pages(array)
        return address

    def _vectors(self, names: tuple[str, ...] | list[str]) -> int:
        """Vectors [C], one after another; zeros for what layer 0 lacks."""
        C = self.config.n_embd
        rows = [
            self._model.stored(name).reshape(-1) if name in self._model.names else np.zeros(C)
            for name in names
        ]
        stacked = np.stack(rows).astype(np.float32)
        address = self._take(stacked.nbytes)
        self._gpu.upload(address, stacked)
        self._gpu.synchronize()  # `stacked` is not there for long
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
        """The maps as the file has them; zeros for what layer 0 lacks."""
        C, row = self.config.n_embd, 0
        first, second = self._reserve_low_rank(sum(self.ranks.values()), C), {}
        for name, rank in self.ranks.items():
            second[name] = self._reserve_low_rank(C, rank)
            self._fill_low_rank(f"{block}att.{name}1", self._rows(first, row, rank))
            self._fill_low_rank(f"{block}att.{name}2", second[name])
            row += rank
        return LowRank(first, second)

    def _low_rank_bytes(self, R: int, K: int) -> tuple[int, int]:
        """Of the weights and the scales of a map as the file has it."""
        return (R * K, 2 * R * -(-K // GROUP)) if self._scaled else (2 * R * K, 0)

    def _reserve_low_rank(self, R: int, K: int) -> Matrix:
        weights, scales = self._low_rank_bytes(R, K)
        return Matrix(self._take(weights), self._take(scales) if scales else 0, R, K)

    def _rows(self, matrix: Matrix, begin: int, count: int) -> Matrix:
        """Some rows of a map."""
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
        return LowRank(self._half(maps.first), {name: self._half(one) for name, one in maps.second.items()})

    def _half(self, matrix: Matrix) -> Matrix:
        """A low-rank map in int8, in float16."""
        weights, scales, R, K = matrix
        target = self._take(2 * R * K)
        arguments = (weights, scales, target, R, K)
        self._gpu.run([Launch("to_half", (_COPY_BLOCKS,), _COPY_THREADS, arguments)])
        return Matrix(target, 0, R, K)

    def _matrices(self, names: list[str]) -> Matrix:
        """Matrices of one width below each other, row-major."""
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
        """Tiles [R / 16, K, 16, c] into rows [R, K, c]."""
        array = self._stage(name)
        tiles, K, _, c = array.shape
        kernel = f"untile{c * array.itemsize}"
        arguments = (self._staging.address, target, tiles * TILE_ROWS, K)
        self._gpu.run([Launch(kernel, (_COPY_BLOCKS,), _COPY_THREADS, arguments)])
        release_pages(array)

    def _by_input(self, name: str) -> Matrix:
        """Blocks of 64 channels [R / 64, K, 64] into rows by hidden unit [K, R]."""
        addresses = []
        parts = [name, name + SCALE] if self._scaled else [name]
        for part in parts:
            array = self._stage(part)
            blocks, units, width = array.shape
            addresses.append(self._take(array.nbytes))
            arguments = (self._staging.address, addresses[-1], blocks, units, width * array.itemsize // 16)
            self._gpu.run([Launch("unblock", (_COPY_BLOCKS,), _COPY_THREADS, arguments)])
            release_pages(array)
        blocks, F = self._model.stored(name).shape[:2]
        return Matrix(addresses[0], addresses[1] if len(addresses) > 1 else 0, blocks * CHANNELS, F)
