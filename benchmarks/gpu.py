#!/usr/bin/env python3
"""How fast the CUDA backend is on this GPU, relative to its memory bandwidth and its tensor cores.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --sizes 0.1b,1.5b --types fp16,int4
    python benchmarks/gpu.py --package

Models have the published shapes and random weights, and are created in memory. Decoding replays the graph of one token,
with weights and state resident; prefill is one sequence; a batch is one token each of many sequences, first with the
logits of all of them, then with the choice of their next tokens, as in `rwkv generate --batch`. Decoding is bound by
memory: bytes that a token must move, times tokens per second, relative to the bandwidth of a large copy on the same GPU
in the same run. With --package, the package `rwkv` of PyPI decodes models of the same shapes in float16; it has to be
installed, with a PyTorch that supports CUDA.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import results
from numpy.typing import NDArray
from synthetic import SHAPES, VOCAB_SIZE

from rwkv_cli.config import ModelConfig
from rwkv_cli.engine.backends.registry import why_not_cuda
from rwkv_cli.engine.gpu.batch import GpuBatch
from rwkv_cli.engine.gpu.batched_pass import BatchedPass
from rwkv_cli.engine.gpu.decode import Decoder
from rwkv_cli.engine.gpu.device_protocol import Device
from rwkv_cli.engine.gpu.launch_plan import Product
from rwkv_cli.engine.gpu.state_slots import StateSlots
from rwkv_cli.engine.gpu.weights import WIDTHS, Weights
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.errors import DeviceError
from rwkv_cli.files import weight_layouts
from rwkv_cli.files.model_file import ModelFile, ModelInfo
from rwkv_cli.files.weight_layouts import WeightType
from rwkv_cli.sampling_settings import SamplingSettings
from rwkv_cli.text.templates import get_template

if TYPE_CHECKING:
    from rwkv_cli.engine.gpu.device import Gpu

MODELS = SHAPES | {
    "2.9b": ModelConfig(32, 2560, 10240, VOCAB_SIZE, rank_w=96, rank_a=96, rank_v=64, rank_g=320),
    "7.2b": ModelConfig(32, 4096, 16384, VOCAB_SIZE, rank_w=128, rank_a=128, rank_v=96, rank_g=480),
}
BATCHES = 1, 8, 64, 512
BATCHED = "2.9b", "fp16"
PROMPT, CHUNK = 4096, 4096
COPIED = 2 << 30  # bytes
SQUARE = 8192  # rows and columns of the product that measures the tensor cores
ROUNDS = 5

TYPES: tuple[WeightType, ...] = ("fp16", "int8", "int4")

_POOL = 1 << 26  # numbers that all weights are taken from
_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I8": np.int8, "U8": np.uint8}


class RandomModel(ModelFile):
    """A model without a file, whose weights are pieces of one pool of random numbers of a realistic scale."""

    def __init__(self, config: ModelConfig, weight_type: WeightType) -> None:
        self.info = ModelInfo(config, weight_type, None, get_template("raw"))
        shapes = config.tensor_shapes().items()
        self._forms = {
            part: form
            for name, shape in shapes
            for part, form in weight_layouts.stored_form(name, shape, weight_type).items()
        }
        self._begin = 0

    @property
    def names(self) -> list[str]:
        """The names of all arrays of weights."""
        return list(self._forms)

    def stored(self, name: str) -> NDArray[Any]:
        """An array of weights in the layout of a model file."""
        kind, shape = self._forms[name]
        self._begin = (self._begin + 64 * 977) % _POOL  # so that successive arrays differ
        return _pool(kind)[self._begin : self._begin + int(np.prod(shape))].reshape(shape)


@functools.cache
def _pool(kind: str) -> NDArray[Any]:
    """Random numbers, as many as the largest tensor has after any start in the first `_POOL`."""
    rng = np.random.default_rng(0)
    if kind in ("I8", "U8"):
        numbers: NDArray[Any] = rng.integers(-127, 128, _POOL, np.int8).view(_NUMPY[kind])
    elif kind == "BF16":
        numbers = ((rng.random(_POOL, np.float32) * 0.0005 + 0.0002).view(np.uint32) >> 16).astype(np.uint16)
    else:
        numbers = (rng.standard_normal(_POOL, np.float32) * 0.02).astype(_NUMPY[kind])
    return np.tile(numbers, 1 + -(-VOCAB_SIZE * max(config.n_embd for config in MODELS.values()) // _POOL))


def seconds(gpu: Device, run: Callable[[], object], times: int) -> float:
    """The time of one run of `times` in a row, median over rounds."""
    run()
    gpu.synchronize()
    measured = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(times):
            run()
        gpu.synchronize()
        measured.append((time.perf_counter() - start) / times)
    return median(measured)


def copy_bandwidth(gpu: Device) -> float:
    """Bytes per second of a copy on the device, reads plus writes."""
    source, target = gpu.allocate(COPIED), gpu.allocate(COPIED)
    for at in range(0, COPIED, _POOL):
        gpu.upload(source.address + at, _pool("U8")[:_POOL])
    return 2 * COPIED / seconds(gpu, lambda: gpu.copy(target.address, source.address, COPIED), 5)


def tensor_rate(gpu: Device) -> float:
    """Floating-point operations per second of a large product in float16 with float32 accumulators."""
    n = SQUARE
    weights, x, out = (gpu.allocate(2 * n * n) for _ in range(3))
    numbers = _pool("F16")[: n * n]
    gpu.upload(weights.address, numbers)
    gpu.upload(x.address, numbers)
    product = Product(weights.address, x.address, out.address, n, n, n, half=True)
    return 2 * n**3 / seconds(gpu, lambda: gpu.run([product]), 10)


class Bench:
    """One model on the GPU."""

    def __init__(self, gpu: Device, config: ModelConfig, weight_type: WeightType) -> None:
        self.config = config
        self._gpu = gpu
        self.weights = Weights(gpu, RandomModel(config, weight_type))

    def decode(self) -> dict[str, float]:
        """Tokens per second one by one, the bytes that each must move, and those that it reads here."""
        gpu, states = self._gpu, StateSlots(self._gpu, self.config, 1)
        decoder = Decoder(gpu, self.weights, states)
        gpu.upload(decoder.token, np.array([5], np.int32))
        replay = gpu.graph(decoder.steps())
        time = seconds(gpu, replay, 100)
        logits = np.zeros(self.config.vocab_size, np.float32)
        gpu.download(decoder.logits, logits)
        if not np.isfinite(logits).all() or not logits.std():
            raise SystemExit("the logits are NaN or all equal, so the speed is meaningless")
        nbytes = weight_layouts.bytes_per_token(self.config, self.weights.type)
        unread = self._value_bytes() // 2  # random weights leave half of the hidden units at zero
        return {"tokens_per_second": 1 / time, "bytes": nbytes, "bytes_read": nbytes - unread}

    def prefill(self) -> dict[str, float]:
        """Tokens per second of a long prompt, and the operations per second of its products."""
        gpu, states = self._gpu, StateSlots(self._gpu, self.config, 1)
        many = BatchedPass(gpu, self.weights, states, CHUNK)
        self._fill(many, np.zeros(CHUNK, np.int32), np.array([0, CHUNK], np.int32))
        steps = many.steps(CHUNK, 1)
        time = seconds(gpu, lambda: gpu.run(steps), 3) * PROMPT / CHUNK
        matrices = self.config.n_params - 2 * self.config.vocab_size * self.config.n_embd
        return {"tokens_per_second": PROMPT / time, "flops": 2 * matrices * PROMPT / time}

    def batch(self, n: int) -> dict[str, float]:
        """Tokens per second of n sequences in total, one token each at a time: passes alone, and with sampling."""
        return {"tokens_per_second": n / self._batched(n), "chosen": n / self._chosen(n)}

    def _batched(self, n: int) -> float:
        """Seconds of a pass."""
        gpu, states = self._gpu, StateSlots(self._gpu, self.config, n)
        if n == 1:
            # In a variable, since the graph uses its memory: it must not be freed before.
            decoder = Decoder(gpu, self.weights, states)
            return seconds(gpu, gpu.graph(decoder.steps()), 10)
        many, logits = BatchedPass(gpu, self.weights, states, n), gpu.allocate(4 * n * self.weights.head.R)
        self._fill(many, np.arange(n, dtype=np.int32), np.arange(n + 1, dtype=np.int32))
        return seconds(gpu, gpu.graph([*many.steps(n, n), *many.logits(n, logits.address)]), 10)

    def _chosen(self, n: int) -> float:
        """Seconds of a pass, the choice of the next tokens, and the host's work."""
        batch = GpuBatch(self._gpu, self.weights, n)
        tokens = np.random.default_rng(0).integers(0, self.config.vocab_size, n)
        parts = {batch.join(): [int(token)] for token in tokens}
        samplers = {slot: Sampler(SamplingSettings(temperature=0)) for slot in parts}

        def step() -> None:
            for slot, choice in batch.choose(parts, samplers).items():
                samplers[slot].accept(choice.token)

        return seconds(self._gpu, step, 10)

    def _value_bytes(self) -> int:
        """Bytes of all `ffn.value` matrices."""
        value = self.weights.layers[0].value
        return int(self.config.n_layer * value.R * value.K * WIDTHS[self.weights.type])

    def _fill(self, many: BatchedPass, slots: NDArray[np.int32], begins: NDArray[np.int32]) -> None:
        """Upload the inputs of a pass: random tokens, their slots, and the beginnings of sequences."""
        tokens = np.random.default_rng(0).integers(0, self.config.vocab_size, len(slots)).astype(np.int32)
        for address, array in ((many.tokens, tokens), (many.slots, slots), (many.begins, begins)):
            self._gpu.upload(address, array)
        self._gpu.synchronize()


def open_gpu(weight_type: WeightType) -> Gpu:
    """The GPU, with kernels for this type. Raises DeviceError if there is no usable one."""
    if reason := why_not_cuda(weight_type):
        raise DeviceError(reason)
    from rwkv_cli.engine.gpu.device import Gpu

    return Gpu(weight_type)


def measure(sizes: Sequence[str], types: Sequence[WeightType], package: bool) -> dict[str, Any]:
    """All figures. Raises DeviceError if there is no usable GPU."""
    gpu = open_gpu(types[0])
    found: dict[str, Any] = {
        **results.circumstances(),
        "gpu": gpu.name,
        "capability": gpu.capability,
        "copy_bytes_per_second": copy_bandwidth(gpu),
        "tensor_flops": tensor_rate(gpu),
        "decode": {},
        "prefill": {},
        "batch": {},
        "package": {},
    }
    for weight_type in types:
        gpu = open_gpu(weight_type)
        for size in sizes:
            bench = Bench(gpu, MODELS[size], weight_type)
            name = f"{size} {weight_type}"
            found["decode"][name] = bench.decode()
            found["prefill"][name] = bench.prefill()
            print(name, _rounded(found["decode"][name]), _rounded(found["prefill"][name]), flush=True)
            if (size, weight_type) == BATCHED:
                found["batch"] = {str(n): bench.batch(n) for n in BATCHES}
                print("batch", found["batch"], flush=True)
            del bench
    if package:
        for size in sizes:
            found["package"][size] = package_speed(MODELS[size])
            print("the package rwkv", size, f"{found['package'][size]:.1f}", flush=True)
    return found


def package_speed(config: ModelConfig) -> float:
    """Tokens per second that the package `rwkv` decodes one by one."""
    os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")  # read during the import
    import torch
    from rwkv.model import RWKV

    pool = torch.from_numpy(_pool("F16"))
    weights = {
        name: pool[1000 * i : 1000 * i + int(np.prod(shape))].reshape(shape).clone()
        for i, (name, shape) in enumerate(config.tensor_shapes().items())
    }
    with tempfile.TemporaryDirectory() as folder:
        torch.save(weights, f"{folder}/model.pth")
        del weights
        model = RWKV(model=f"{folder}/model", strategy="cuda fp16")
    state = None

    def decode(count: int) -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(count):
            logits, state = model.forward([5], state)
        if not torch.isfinite(logits).all():  # waits for the GPU
            raise SystemExit("the package's logits are NaN, so its speed is meaningless")
        return (time.perf_counter() - start) / count

    decode(10)  # TorchScript compiles
    return 1 / median(decode(20) for _ in range(ROUNDS))


def _rounded(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.0f}" for name, value in values.items())


def write_report(path: Path, found: results.Facts) -> None:
    """Write the tables beside the results at `path`."""
    results.write_text(path.with_suffix(".md"), report(found))


def report(found: results.Facts) -> str:
    """The figures, in Markdown."""
    parts = [_single(found)]
    if found["package"]:
        parts.append(_row_per_figure("decode in fp16, tokens/s", {"the package `rwkv`": found["package"]}))
    if found["batch"]:
        titles = {"tokens_per_second": "tokens/s in total", "chosen": "with the choice of the next tokens"}
        rows = {
            title: {n: speeds[figure] for n, speeds in found["batch"].items()}
            for figure, title in titles.items()
        }
        parts.append(_row_per_figure(f"{' '.join(BATCHED)}, batch size", rows))
    return "\n\n".join([*parts, f"Measured on {found['gpu']}, {results.sentence(found)}."]) + "\n"


def _single(found: results.Facts) -> str:
    """Decoding and prefill of one sequence, by model."""
    copy, tensor = found["copy_bytes_per_second"], found["tensor_flops"]
    lines = [
        f"Copies of {COPIED >> 30} GiB run at {copy / 1e9:,.0f} GB/s, products of {SQUARE:,} x {SQUARE:,} in float16 "
        f"at {tensor / 1e12:.0f} TFLOP/s.",
        "",
        "| model | decode, tokens/s | MB per token | of the copy bandwidth | without skipped rows | prefill of "
        f"{PROMPT:,}, tokens/s | of the tensor cores |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in found["decode"].items():
        speed, prompt = one["tokens_per_second"], found["prefill"][name]
        lines.append(
            f"| {name} | {speed:,.0f} | {one['bytes'] / 1e6:,.0f} | {one['bytes'] * speed / copy:.0%} "
            f"| {one['bytes_read'] * speed / copy:.0%} | {prompt['tokens_per_second']:,.0f} "
            f"| {prompt['flops'] / tensor:.0%} |"
        )
    return "\n".join(lines)


def _row_per_figure(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """A table with a row per title, whose columns are the keys of its figures."""
    columns = next(iter(rows.values()))
    lines = [
        f"| {title} |" + "".join(f" {column} |" for column in columns),
        "|---|" + "---:|" * len(columns),
        *(
            f"| {name} |" + "".join(f" {value:,.0f} |" for value in row.values())
            for name, row in rows.items()
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the results and the report."""
    options = _parser().parse_args()
    try:
        found = measure(options.sizes, options.types, options.package)
    except DeviceError as error:
        raise SystemExit(f"error: {error}") from None
    path = results.folder(options.results, machine_name=found["gpu"]) / "gpu.json"
    results.write_json(path, found)
    write_report(path, found)
    print(report(found), end="")


def _parser() -> argparse.ArgumentParser:
    sizes, types = ",".join(MODELS), ",".join(TYPES)
    parser = results.parser(__doc__)
    parser.add_argument("--sizes", type=results.some_of(MODELS), default=sizes, help=f"default: {sizes}")
    parser.add_argument("--types", type=results.some_of(TYPES), default=types, help=f"default: {types}")
    parser.add_argument("--package", action="store_true", help="measure the package rwkv as well")
    return parser


if __name__ == "__main__":
    main()
