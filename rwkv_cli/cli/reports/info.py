"""What `rwkv info` tells, as JSON values by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rwkv_cli import machine
from rwkv_cli.convert.conversion import describe
from rwkv_cli.engine.backends import registry
from rwkv_cli.engine.gpu import probe
from rwkv_cli.files.checkpoints import open_checkpoint
from rwkv_cli.files.model_file import ModelFile, is_model_file
from rwkv_cli.files.weight_layouts import WeightType
from rwkv_cli.text.tokenizer import load_tokenizer


def machine_facts() -> dict[str, Any]:
    """The hardware."""
    total, available = machine.memory()
    return {
        "system": machine.system(),
        "cpu": machine.cpu_name(),
        "cpu_features": machine.cpu_features(),
        "threads": machine.default_threads(),
        "memory_bytes": total,
        "available_bytes": available,
        "gpu": probe.described(),
    }


def backend_facts(device: str, path: Path) -> dict[str, Any]:
    """The backend for a --device option and a model, why it is chosen, whether a GPU could run the model, and what the
    CPU kernels are built on.
    """
    weight_type, weight_bytes = _weights(path)
    selection = registry.select(device, weight_type, weight_bytes)
    problem = registry.why_not_cuda(weight_type, weight_bytes)
    facts: dict[str, Any] = {"device": selection.device, "reason": selection.reason}
    facts["cuda"] = f"cannot run: {problem}" if problem else "can run"
    try:
        from cpu_kernels import instructions
        from cpu_kernels.aot import is_compiled
    except (ImportError, ValueError) as error:
        return facts | {"cpu_kernels": f"cannot run: {error}"}
    return facts | {
        "instruction": instructions.CHOSEN,
        "instructions": instructions.available(),
        "compiled": is_compiled("forward.passes"),
    }


def _weights(path: Path) -> tuple[WeightType, int]:
    """The type of the weights that a backend gets, and their bytes; 0 where a checkpoint is quantized for it first."""
    if not is_model_file(path):
        return "int8", 0
    file = ModelFile(path)
    return file.info.weight_type, file.weight_bytes


def model_facts(path: Path) -> dict[str, Any]:
    """What can be said of a model without running it; a published checkpoint is not quantized for this."""
    facts: dict[str, Any] = {"path": str(path)}
    files: tuple[Path, ...] = (path,)
    if is_model_file(path):
        file = ModelFile(path)
        about = file.info
        facts |= {
            "format": "model file",
            "weight_type": about.weight_type,
            "weights_bytes": file.weight_bytes,
        }
    else:
        checkpoint = open_checkpoint(path)
        about, files = describe(checkpoint, "int8"), checkpoint.files
        facts |= {"format": f"published checkpoint ({checkpoint.format})", "weight_type": checkpoint.dtype}
    config = about.config
    ranks = {"w": config.rank_w, "a": config.rank_a, "v": config.rank_v, "g": config.rank_g}
    tokenizer = load_tokenizer(about.tokenizer, config.vocab_size).name if about.tokenizer else None
    return facts | {
        "file_bytes": sum(file.stat().st_size for file in files),
        "source": dict(about.source),
        "parameters": config.n_params,
        "layers": config.n_layer,
        "channels": config.n_embd,
        "heads": config.n_head,
        "hidden_units": config.n_ffn,
        "vocabulary": config.vocab_size,
        "ranks": ranks,
        "state_bytes": config.state_bytes,
        "tokenizer": tokenizer,
        "template": about.template,
        "sampling": dict(about.sampling),
    }
