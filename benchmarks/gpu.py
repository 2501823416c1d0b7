#!/usr/bin/env python3
"""How fast the CUDA backend is on this GPU, next to what its memory and its tensor cores could do.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --sizes 0.1b,1.5b --types fp16,int4
    python benchmarks/gpu.py --package

Models of the published shapes with random weights, made in memory. Decoding is the graph of one token, over and over,
weights and state resident; prefill is one sequence; a batch is one token each of many sequences, with the logits of all
of them, and then with the choice of their next tokens, as `rwkv generate --batch` does it. The limit of decoding is the
memory: bytes that a token must move, times tokens a second, over the bandwidth of a large copy on the same GPU in the
same run. With --package, the package `rwkv` of PyPI decodes models of the same shapes in float16, if it is installed,
with a PyTorch that has CUDA.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import results
from numpy.typing import NDArray
from synthetic import SHAPES, VOCAB_SIZE

from rwkv_cli.config import ModelConfig
from rwkv_cli.engine.gpu.batch import GpuBatch
from rwkv_cli.engine.gpu.batched_pass import BatchedPass
from rwkv_cli.engine.gpu.decode import Decoder
from rwkv_cli.engine.gpu.device import Gpu
from rwkv_cli.engine.gpu.launch_plan import Product
from rwkv_cli.engine.gpu.state_slots import StateSlots
from rwkv_cli.engine.gpu.weights import WIDTHS, Weights
from rwkv_cli.engine.sampling import Sampler
from rwkv_cli.errors import DeviceError
from rwkv_cli.files import weight_layouts
from rwkv_cli.files.weight_layouts import WeightType
from rwkv_cli.sampling_settings import SamplingSettings

MODELS = SHAPES | {
    "2.9b": ModelConfig(32, 2560, 10240, VOCAB_SIZE, rank_w=96, rank_a=96, rank_v=64, rank_g=320),
    "7.2b": ModelConfig(32, 4096, 16384, VOCAB_SIZE, rank_w=128, rank_a=128, rank_v=96, rank_g=480),
}
BATCHES = 1, 8, 64, 512
BATCHED = "2.9b", "fp16"
PROMPT, CHUNK = 4096, 4096
COPIED = 2 << 30  # bytes
SQUARE = 8192  # of the product that shows what tensor cores do
ROUNDS = 5

_POOL = 1 << 26  # numbers that all weights are taken from
_NUMPY = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I8": np.int8, "U8": np.uint8}


class RandomModel:
    """What `Weights` asks of a model file, without a file: pieces of a pool of random numbers of sane scale."""

    def __init__(self, config: ModelConfig, weight_type: WeightType) -> None:
        self.config, self.info = config, SimpleNamespace(weight_type=weight_type)
        shapes = config.tensor_shapes().items()
        self._forms = {
            part: form
            for name, shape in shapes
            for part, form in weight_layouts.stored_form(name, shape, weight_type).items()
        }
        self.names = list(self._forms)
        self._begin = 0

    def stored(self, name: str) -> NDArray[Any]:
        kind, shape = self._forms[name]
        self._begin = (self._begin + 64 * 977) % _POOL  # so that neighbours differ
        return _pool(kind)[self._begin : self._begin + int(np.prod(shape))].reshape(shape)


@functools.cache
def _pool(kind: str) -> NDArray[Any]:
    """Random numbers that the largest tensor fits in, from every beginning in the first `_POOL`."""
    rng = np.random.default_rng(0)
    if kind in ("I8", "U8"):
        numbers: NDArray[Any] = rng.integers(-127, 128, _POOL, np.int8).view(_NUMPY[kind])
    elif kind == "BF16":
        numbers = ((rng.random(_POOL, np.float32) * 0.0005 + 0.0002).view(np.uint32) >> 16).astype(np.uint16)
    else:
        numbers = (rng.standard_normal(_POOL, np.float32) * 0.02).astype(_NUMPY[kind])
    return np.tile(numbers, 1 + -(-VOCAB_SIZE * max(config.n_embd for config in MODELS.values()) // _POOL))


def seconds(gpu: Gpu, run: Callable[[], object], times: int) -> float:
    """The median over rounds of the time of one run, in a row of `times`."""
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


def copy_bandwidth(gpu: Gpu) -> float:
    """Bytes a second of a copy on the device, those read and those written."""
    source, target = gpu.allocate(COPIED), gpu.allocate(COPIED)
    for at in range(0, COPIED, _POOL):
        gpu.upload(source.address + at, _pool("U8")[:_POOL])
    return 2 * COPIED / seconds(gpu, lambda: gpu.copy(target.address, source.address, COPIED), 5)


def tensor_rate(gpu: Gpu) -> float:
    """Floating-point operations a second of a large product in float16, sums in float32."""
    n = SQUARE
    memory = [gpu.allocate(2 * n * n) for _ in range(3)]
    numbers = _pool("F16")[: n * n]
    gpu.upload(memory[0].address, numbers)
    gpu.upload(memory[1].address, numbers)
    product = Product(*(each.address for each in memory), n, n, n, half=True)
    return 2 * n**3 / seconds(gpu, lambda: gpu.run([product]), 10)


class Bench:
    """One model on the GPU."""

    def __init__(self, gpu: Gpu, size: str, weight_type: WeightType) -> None:
        self.config = MODELS[size]
        self._gpu = gpu
        self.weights = Weights(gpu, RandomModel(self.config, weight_type))  # type: ignore[arg-type]

    def decode(self) -> dict[str, float]:
        """Tokens a second one by one, and the bytes of each."""
        gpu, states = self._gpu, StateSlots(self._gpu, self.config, 1)
        decoder = Decoder(gpu, self.weights, states)
        gpu.upload(decoder.token, np.array([5], np.int32))
        replay = gpu.graph(decoder.steps())
        time = seconds(gpu, replay, 100)
        logits = np.zeros(VOCAB_SIZE, np.float32)
        gpu.download(decoder.logits, logits)
        if not np.isfinite(logits).all() or not logits.std():
            raise SystemExit("the logits are no numbers, or all the same: this measures nothing")
        nbytes = weight_layouts.bytes_per_token(self.config, self.weights.type)
        unread = self._value_bytes() // 2  # random weights leave half of the hidden units at zero
        return {"tokens_per_second": 1 / time, "bytes": nbytes, "bytes_read": nbytes - unread}

    def prefill(self) -> dict[str, float]:
        """Tokens a second of a long prompt, and the operations of its products."""
        gpu, states = self._gpu, StateSlots(self._gpu, self.config, 1)
        many = BatchedPass(gpu, self.weights, states, CHUNK)
        _fill(gpu, many, np.zeros(CHUNK, np.int32), np.array([0, CHUNK], np.int32))
        steps = many.steps(CHUNK, 1)
        time = seconds(gpu, lambda: gpu.run(steps), 3) * PROMPT / CHUNK
        matrices = self.config.n_params - 2 * VOCAB_SIZE * self.config.n_embd
        return {"tokens_per_second": PROMPT / time, "flops": 2 * matrices * PROMPT / time}

    def batch(self, n: int) -> dict[str, float]:
        """Tokens a second of n sequences together, a token each at a time: as passes alone, and with what chooses."""
        return {"tokens_per_second": n / self._batched(n), "chosen": n / self._chosen(n)}

    def _batched(self, n: int) -> float:
        """Seconds of a pass."""
        gpu, states = self._gpu, StateSlots(self._gpu, self.config, n)
        if n == 1:
            return seconds(gpu, gpu.graph(Decoder(gpu, self.weights, states).steps()), 10)
        many, logits = BatchedPass(gpu, self.weights, states, n), gpu.allocate(4 * n * self.weights.head.R)
        _fill(gpu, many, np.arange(n, dtype=np.int32), np.arange(n + 1, dtype=np.int32))
        return seconds(gpu, gpu.graph([*many.steps(n, n), *many.logits(n, logits.address)]), 10)

    def _chosen(self, n: int) -> float:
        """Seconds of a pass and of the choice of the next tokens, and of the host's work."""
        batch = GpuBatch(self._gpu, self.weights, n)
        tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, n).tolist()
        parts = {batch.join(): [token] for token in tokens}
        samplers = [Sampler(SamplingSettings(temperature=0)) for _ in tokens]
        return seconds(self._gpu, lambda: batch.choose(parts, samplers), 10)

    def _value_bytes(self) -> int:
        value = self.weights.layers[0].value
        return int(self.config.n_layer * value.R * value.K * WIDTHS[self.weights.type])


def _fill(gpu: Gpu, many: BatchedPass, slots: NDArray[np.int32], begins: NDArray[np.int32]) -> None:
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, len(slots)).astype(np.int32)
    for address, array in ((many.tokens, tokens), (many.slots, slots), (many.begins, begins)):
        gpu.upload(address, array)
    gpu.synchronize()


def measure(sizes: Sequence[str], types: Sequence[WeightType], package: bool) -> dict[str, Any]:
    """All figures."""
    gpu = Gpu(types[0])
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
        gpu = Gpu(weight_type)
        for size in sizes:
            bench = Bench(gpu, size, weight_type)
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
    """Tokens a second that the package `rwkv` decodes one by one."""
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
            raise SystemExit("the package's logits are no numbers: this measures nothing")
        return (time.perf_counter() - start) / count

    decode(10)  # TorchScript compiles
    return 1 / median(decode(20) for _ in range(ROUNDS))


def _rounded(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.0f}" for name, value in values.items())


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    copy, tensor = found["copy_bytes_per_second"], found["tensor_flops"]
    lines = [
        f"Copies of {COPIED >> 30} GiB run at {copy / 1e9:,.0f} GB/s, products of {SQUARE:,} x {SQUARE:,} in float16 "
        f"at {tensor / 1e12:.0f} TFLOP/s.",
        "",
        "| model | decode, tokens/s | MB a token | of the copy | without zeros | prefill of "
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
    if found["package"]:
        lines += [
            "",
            "| decode in fp16, tokens/s |" + "".join(f" {size} |" for size in found["package"]),
            "|---|" + "---:|" * len(found["package"]),
            "| the package `rwkv` |" + "".join(f" {speed:,.0f} |" for speed in found["package"].values()),
        ]
    if found["batch"]:
        head = "".join(f" {n} |" for n in found["batch"])
        lines += [
            "",
            f"| {' '.join(BATCHED)}, sequences at once |{head}",
            "|---|" + "---:|" * len(found["batch"]),
        ]
        for kind, title in (
            ("tokens_per_second", "tokens/s of all"),
            ("chosen", "with the choice of the next"),
        ):
            lines.append(f"| {title} |" + "".join(f" {one[kind]:,.0f} |" for one in found["batch"].values()))
    return "\n".join([*lines, "", f"Measured on {found['gpu']}, {results.sentence(found)}.", ""])


def main() -> None:
    """Measure, print, and leave the results in their folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default=",".join(MODELS))
    parser.add_argument("--types", default="fp16,int8,int4")
    parser.add_argument("--package", action="store_true", help="measure the package rwkv as well")
    parser.add_argument("--results", type=Path, help="the folder of results")
    options = parser.parse_args()
    try:
        found = measure(options.sizes.split(","), options.types.split(","), options.package)
    except DeviceError as error:
        raise SystemExit(f"there is nothing to measure: {error}") from None
    name = re.sub(r"[^a-z0-9.]+", "-", found["gpu"].lower()).strip("-")
    folder = results.folder(options.results or results.ROOT / "benchmarks" / "results" / name)
    results.write_json(folder / "gpu.json", found)
    results.write_text(folder / "gpu.md", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
