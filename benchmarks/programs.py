"""The programs to compare, behind one protocol: read tokens, compute the logits of the last one.

Packages that are slow to import, or that may be missing, are imported when a program is opened.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

LONGEST = 4096
"""The most tokens that a program has to read between two resets."""

MICROBATCH = 512
"""Tokens of a prompt that llama.cpp processes together."""


class Program(Protocol):
    """A model, loaded by one of the programs."""

    description: str  # the program's version, and what does its arithmetic
    weight_bytes: int  # all weights except the embedding, of which a token needs one row

    def reset(self) -> None:
        """Return to the empty state."""
        ...

    def forward(self, tokens: Sequence[int]) -> None:
        """Read tokens and compute the logits of the last one."""
        ...


class RwkvCli:
    """This project's CPU backend, whose state is updated in place."""

    def __init__(self, path: Path, threads: int) -> None:
        from rwkv_cli import __version__
        from rwkv_cli.engine.backends.cpu import CpuBackend
        from rwkv_cli.files.model_file import ModelFile

        model = ModelFile(path)
        self._backend = CpuBackend(model, threads)
        self.description = f"rwkv-cli {__version__}: {self._backend.description}"
        embedding = [f"emb.weight{part}" for part in ("", ".scale")]
        self.weight_bytes = model.weight_bytes - sum(model.stored(name).nbytes for name in embedding)
        self.reset()

    def reset(self) -> None:
        from rwkv_cli.engine.state import State

        self._state = State.zeros(self._backend.config)

    def forward(self, tokens: Sequence[int]) -> None:
        self._backend.forward(tokens, self._state)


class LlamaCpp:
    """llama.cpp through the low-level functions of llama-cpp-python, without its Python layer between tokens."""

    def __init__(self, path: Path, threads: int) -> None:
        self._library, model, self.description = open_llama(path)
        llama_cpp = self._library
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = LONGEST
        settings.n_batch = settings.n_ubatch = MICROBATCH
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(model, settings)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.weight_bytes = _gguf_bytes(path)

    def reset(self) -> None:
        memory = self._library.llama_get_memory(self._context)
        self._library.llama_memory_clear(memory, True)

    def forward(self, tokens: Sequence[int]) -> None:
        array = (self._library.llama_token * len(tokens))(*tokens)
        batch = self._library.llama_batch_get_one(array, len(tokens))  # logits of the last token only
        code = self._library.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode gave {code}")
        logits = self._library.llama_get_logits_ith(self._context, -1)
        np.ctypeslib.as_array(logits, (self._vocab_size,))


def open_llama(path: Path, extra_buffers: bool = True) -> tuple[Any, Any, str]:
    """llama.cpp's functions, a model on the CPU, and a description of the program. Raises RuntimeError.

    `extra_buffers` are copies of weights in other layouts, for AMX too, which crashes on some virtual machines.
    """
    import llama_cpp

    llama_cpp.llama_backend_init()
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers, settings.use_extra_bufts = 0, extra_buffers
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {path}")
    features = llama_cpp.llama_print_system_info().decode()
    used = [part.split("=")[0].strip(" :") for part in features.split("|") if "= 1" in part]
    layouts = "" if extra_buffers else ", weights as in the file"
    return llama_cpp, model, f"llama-cpp-python {llama_cpp.__version__}: {', '.join(used)}{layouts}"


class RwkvPackage:
    """The package `rwkv` of PyPI, compiled by TorchScript, on the CPU."""

    def __init__(self, path: Path, threads: int, dtype: str) -> None:
        os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")  # read during the import
        from importlib.metadata import version

        import torch
        from rwkv.model import RWKV

        torch.set_num_threads(threads)
        self._model = RWKV(model=str(path.with_suffix("")), strategy=f"cpu {dtype}")
        self.description = f"rwkv {version('rwkv')}: torch {torch.__version__}, {dtype}"
        unused = ("emb.", "blocks.0.ln0", "blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2")
        weights = [tensor for name, tensor in self._model.z.items() if not name.startswith(unused)]
        self.weight_bytes = sum(tensor.nbytes for tensor in weights)
        self.reset()

    def reset(self) -> None:
        self._state: Any = None

    def forward(self, tokens: Sequence[int]) -> None:
        self._logits, self._state = self._model.forward(list(tokens), self._state)


class Probe:
    """Not a program, but the limit of all of them: the read bandwidth of this machine."""

    BYTES = 1 << 29
    TIMES = 8

    def __init__(self, threads: int) -> None:
        from cpu_kernels import abi
        from cpu_kernels.runtime import aot, thread_team

        self._kernel = aot.kernel("bandwidth.passes")
        self._n_blocks = self.BYTES // abi.PROBE_BLOCK
        self._memory = np.ones(self.BYTES // 4, np.float32)
        self._sums = np.zeros((threads, abi.LANES), np.float32)
        self._team = thread_team.Team(threads)
        self.description = f"reads {self.BYTES >> 20} MiB {self.TIMES} times, {threads} threads"

    def read(self) -> int:
        """Read the memory several times; gives the number of bytes."""
        for _ in range(self.TIMES):
            self._team.run(self._kernel, 0, self._memory, self._n_blocks, self._sums)
        return self.BYTES * self.TIMES


@dataclass(frozen=True)
class Entry:
    """A program and the file that it loads."""

    name: str
    file: str  # the part of its name after the size
    baseline: str  # the entry that its speed is divided by
    options: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether it is this project's program."""
        return self.name.startswith("rwkv-cli")

    def open(self, folder: Path, size: str, threads: int) -> Program:
        """Load the model. Raises the program's own exceptions."""
        classes: dict[str, Any] = {"rwkv-cli": RwkvCli, "llama.cpp": LlamaCpp, "rwkv": RwkvPackage}
        program: Program = classes[self.name.split()[0]](folder / (size + self.file), threads, *self.options)
        return program


# In the order of tables and pictures: next to what they are compared with.
ENTRIES = {
    entry.name: entry
    for entry in (
        Entry("llama.cpp Q8_0", "-Q8_0.gguf", "llama.cpp Q8_0"),
        Entry("rwkv-cli int8", "-int8.safetensors", "llama.cpp Q8_0"),
        Entry("llama.cpp Q4_0", "-Q4_0.gguf", "llama.cpp Q4_0"),
        Entry("rwkv-cli int4", "-int4.safetensors", "llama.cpp Q4_0"),
        Entry("rwkv fp32", ".pth", "llama.cpp Q8_0", ("fp32",)),
        Entry("rwkv bf16", ".pth", "llama.cpp Q8_0", ("bf16",)),
    )
}


def _gguf_bytes(path: Path) -> int:
    """Bytes of the weights in use: layer 0 has no value residual, but llama.cpp requires its tensors in the file."""
    from gguf import GGUFReader

    unused = ("token_embd", "blk.0.time_mix_v0", "blk.0.time_mix_v1", "blk.0.time_mix_v2")
    tensors = GGUFReader(path).tensors
    return int(sum(tensor.n_bytes for tensor in tensors if not tensor.name.startswith(unused)))
