"""What `rwkv info` shows: facts as JSON values by name, and as tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rwkv_cli import machine
from rwkv_cli.cli.terminal import ui
from rwkv_cli.convert.conversion import describe
from rwkv_cli.engine.backends import registry
from rwkv_cli.engine.gpu import probe
from rwkv_cli.files.checkpoints import open_checkpoint
from rwkv_cli.files.model_file import ModelFile, is_model_file
from rwkv_cli.files.weight_layouts import WeightType
from rwkv_cli.reporting import format_size
from rwkv_cli.text.template import Template
from rwkv_cli.text.tokenizer import load_tokenizer

Facts = dict[str, object]


def facts(path: Path, device: str) -> dict[str, Facts]:
    """Facts about this machine, the backend that --device chooses for a model, and the model."""
    return {"machine": machine_facts(), "backend": backend_facts(device, path), "model": model_facts(path)}


def machine_facts() -> Facts:
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


def backend_facts(device: str, path: Path) -> Facts:
    """The backend that --device chooses for a model and why, whether a GPU could run the model, and the CPU kernels."""
    weight_type, weight_bytes = _weights(path)
    selection = registry.select(device, weight_type, weight_bytes)
    problem = registry.why_not_cuda(weight_type, weight_bytes)
    facts: Facts = {"device": selection.device, "reason": selection.reason}
    facts["cuda"] = f"cannot run: {problem}" if problem else "can run"
    try:
        from cpu_kernels.runtime import instructions
        from cpu_kernels.runtime.aot import is_compiled
    except (ImportError, ValueError) as error:
        return facts | {"cpu_kernels": f"cannot run: {error}"}
    return facts | {
        "instruction": instructions.CHOSEN,
        "instructions": instructions.available(),
        "compiled": is_compiled("forward.passes"),
    }


def _weights(path: Path) -> tuple[WeightType, int]:
    """The type and size in bytes of the weights that a backend loads; 0 for a checkpoint, which is quantized first."""
    if not is_model_file(path):
        return "int8", 0
    file = ModelFile(path)
    return file.info.weight_type, file.weight_bytes


def model_facts(path: Path) -> Facts:
    """What can be said of a model without running it; a published checkpoint is not quantized for this."""
    facts: Facts = {"path": str(path)}
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
        "template": about.template.name,
        "template_from": about.template_from or None,
        "prompts": prompts(about.template),
        "sampling": {**about.template.sampling_for(), **about.sampling},
    }


def prompts(template: Template) -> dict[str, str]:
    """How a template lays out {prompt}: where no mode of thinking is chosen, and in each mode."""
    modes = {"default": None} | {mode: mode for mode in template.thinking}
    return {name: template.render("{prompt}", think=mode) for name, mode in modes.items()}


def prompts_text(prompts: object) -> str:
    """The value of `prompts` for display, in one line."""
    texts = prompts if isinstance(prompts, dict) else {}
    return ", ".join(f"{mode} {json.dumps(text, ensure_ascii=False)}" for mode, text in texts.items())


def show(sections: Mapping[str, Facts]) -> None:
    """Print the facts as a table per section; those that are not known are left out."""
    for title, section in sections.items():
        rows = {_label(name): _text(name, value) for name, value in section.items()}
        ui.table(title, {name: text for name, text in rows.items() if text})


def _label(name: str) -> str:
    words = name.removesuffix("_bytes").split("_")
    return " ".join(word.upper() if word in ("cpu", "gpu", "cuda") else word for word in words)


def _text(name: str, value: object) -> str:
    """Format a value for display; "" if it is not known."""
    if value is None:
        return "none" if name == "tokenizer" else ""
    if name == "prompts":
        return prompts_text(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(value) or "none found"
    if isinstance(value, bool):
        return "yes" if value else "not yet"
    if isinstance(value, int):
        return format_size(value) if name.endswith("_bytes") else f"{value:,}"
    return str(value)
